"""Quarantine: a site takes no part until the coordinator releases it.

It gets there when its replies are refused, or its updates oppose the others', in three of its last five rounds, or when
its declared number of patients changes.

Only the round loop writes ``state.json``. A release is therefore a note in the run folder, which the loop reads before
its next round; it works whether or not the federation is running.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from common.errors import FedvoxError
from common.protocol.codec import Refusal, SiteInfo
from server.rounds.judgement.conduct import blame_of, is_enough, with_round
from server.rounds.judgement.directions import Directions
from server.run_store.folder import RunFolder, RunState
from server.run_store.releases import note_release, noted_releases


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
    note_release(folder.path, site)


def read_releases(folder: RunFolder, state: RunState) -> list[str]:
    """Release the sites that the coordinator noted, commit the state, and return their names."""
    notes = noted_releases(folder.path)
    released = []
    for site in notes.values():
        if state.quarantine.pop(site, None) is not None:
            state.conduct.pop(site, None)
            for about in ("quarantine", "watch", "copy", "patients"):
                state.alarms.pop(f"{about} {site}", None)
            state.declared.pop(site, None)
            state.changed.pop(site, None)
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
    if info.site not in state.changed:
        state.changed[info.site] = numbers
        if state.quarantine.setdefault(info.site, Refusal.PATIENTS_CHANGED) == Refusal.PATIENTS_CHANGED:
            folder.event("site_quarantined", site=info.site, reason=Refusal.PATIENTS_CHANGED)
        folder.commit(state)
    return False


def record_conduct(
    folder: RunFolder,
    state: RunState,
    refused: Mapping[str, Refusal | None],
    directions: Directions,
    scales: Mapping[str, float] | None = None,
    copied: Collection[str] = frozenset(),
) -> list[str]:
    """Record a round's outcome, and quarantine the sites that were refused or opposed the others too often.

    A missing reply changes nothing. Sites in a dispute are told if they were refused, but it does not count against
    them: any of them may be honest.

    Parameters
    ----------
    refused
        Site -> why its reply was refused, None if it was accepted.
    directions
        How the accepted updates point.
    scales
        Site -> factor by which its accepted update was scaled.
    copied
        Sites whose accepted updates are nearly copies.

    Returns
    -------
    list[str]
        Newly quarantined sites. The caller commits the state.
    """
    newly_quarantined = []
    for site, reason in refused.items():
        if reason is None:
            state.refused_last.pop(site, None)
        else:
            state.refused_last[site] = reason
        blame = reason or blame_of(site, directions, scales or {}, copied)
        state.conduct[site] = with_round(state.conduct.get(site, []), blame)
        if isinstance(blame, Refusal) and is_enough(state.conduct[site]) and site not in state.quarantine:
            state.quarantine[site] = blame
            for about in ("watch", "copy"):
                state.alarms.pop(f"{about} {site}", None)
            newly_quarantined.append(site)
            folder.event("site_quarantined", site=site, reason=blame)
    return newly_quarantined
