"""Quarantine: a site takes no part until the coordinator releases it.

It gets there when its replies are refused three times in a row, or when its declared number of patients changes.

Only the round loop writes ``state.json``. A release is therefore a note in the run folder, which the loop reads before
its next round; it works whether or not the federation is running.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from common.errors import FedvoxError
from common.protocol.codec import Refusal, SiteInfo
from common.system.files import write_atomically
from server.run_store.folder import RunFolder, RunState

REFUSALS_IN_A_ROW = 3


class QuarantineError(FedvoxError):
    """A site that cannot be released."""


def release(folder: RunFolder, site: str) -> None:
    """Let a quarantined site take part again from the next round on.

    Raises
    ------
    QuarantineError
        The site is not in quarantine.
    """
    state = folder.load_state()
    quarantined = {} if state is None else state.quarantine
    if site not in quarantined:
        names = ", ".join(sorted(quarantined)) or "no site"
        raise QuarantineError(f"{folder.path}: {site} is not in quarantine (in it: {names})")
    (folder.path / "releases").mkdir(exist_ok=True)
    write_atomically(folder.path / "releases" / _file_name(site), site)


def read_releases(folder: RunFolder, state: RunState) -> list[str]:
    """Release the sites that the coordinator noted, commit the state, and return their names."""
    notes = sorted((folder.path / "releases").glob("*.txt"))
    released = []
    for note in notes:
        site = note.read_text(encoding="utf-8")
        if state.quarantine.pop(site, None) is not None:
            state.refusals.pop(site, None)
            state.declared.pop(site, None)
            released.append(site)
    if released:
        folder.commit(state)
    for note in notes:
        note.unlink(missing_ok=True)
    for site in released:
        folder.event("site_released", site=site)
    return released


def same_patients(folder: RunFolder, state: RunState, info: SiteInfo) -> bool:
    """Return whether a site declares the numbers of patients that it declared first; quarantine it if not.

    The state is committed at once: only a person can release the site, and the run may be waiting for it.
    """
    numbers = info.train_examples, info.validation_examples
    if state.declared.setdefault(info.site, numbers) == numbers:
        return True
    if info.site not in state.quarantine:
        state.quarantine[info.site] = Refusal.PATIENTS_CHANGED
        folder.commit(state)
        folder.event("site_quarantined", site=info.site, reason=Refusal.PATIENTS_CHANGED)
    return False


def count_refusals(folder: RunFolder, state: RunState, refused: Mapping[str, Refusal | None]) -> list[str]:
    """Record a round's outcome: site -> why its reply was refused, None if it was accepted.

    A missing reply changes nothing. Both sites of a dispute are told, but it does not count against them: one of them
    may be honest.

    Returns
    -------
    list[str]
        Newly quarantined sites. The caller commits the state.
    """
    newly_quarantined = []
    for site, reason in refused.items():
        if reason is None:
            state.refusals.pop(site, None)
            state.refused_last.pop(site, None)
            continue
        state.refused_last[site] = reason
        if reason is Refusal.NORM_DISPUTED:
            continue
        state.refusals[site] = state.refusals.get(site, 0) + 1
        if state.refusals[site] >= REFUSALS_IN_A_ROW and site not in state.quarantine:
            state.quarantine[site] = reason
            newly_quarantined.append(site)
            folder.event("site_quarantined", site=site, reason=reason)
    return newly_quarantined


def _file_name(site: str) -> str:
    return f"{hashlib.sha256(site.encode()).hexdigest()[:24]}.txt"
