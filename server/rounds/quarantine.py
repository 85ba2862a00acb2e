"""Sites whose updates were refused three times in a row are not asked again until the coordinator releases them.

``state.json`` belongs to the round loop alone. A release is therefore a note in the run folder, which the loop reads
before its next round; it works while the federation runs and while it does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from common.errors import FedvoxError
from common.protocol.codec import Refusal
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
    held = {} if state is None else state.quarantine
    if site not in held:
        names = ", ".join(sorted(held)) or "no site is"
        raise QuarantineError(f"{folder.path}: {site} is not in quarantine (in it: {names})")
    (folder.path / "releases").mkdir(exist_ok=True)
    write_atomically(folder.path / "releases" / _file_name(site), site)


def read_releases(folder: RunFolder, state: RunState) -> list[str]:
    """Take the sites that the coordinator released out of quarantine, commit that, and return their names."""
    notes = sorted((folder.path / "releases").glob("*.txt"))
    released = []
    for note in notes:
        site = note.read_text(encoding="utf-8")
        if state.quarantine.pop(site, None) is not None:
            state.refusals.pop(site, None)
            released.append(site)
    if released:
        folder.commit(state)
    for note in notes:
        note.unlink(missing_ok=True)
    for site in released:
        folder.event("site_released", site=site)
    return released


def count_refusals(folder: RunFolder, state: RunState, refused: Mapping[str, Refusal | None]) -> list[str]:
    """Note a round's outcome: site -> why its reply was refused, None where it was accepted.

    A reply that never came changes nothing. The two sites of a dispute are told, but it is not held against them: one
    of them is honest.

    Returns
    -------
    list[str]
        Sites that are in quarantine from now on. The caller commits the state.
    """
    caught = []
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
            caught.append(site)
            folder.event("site_quarantined", site=site, reason=reason)
    return caught


def _file_name(site: str) -> str:
    return f"{hashlib.sha256(site.encode()).hexdigest()[:24]}.txt"
