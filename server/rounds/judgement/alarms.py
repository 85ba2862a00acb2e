"""What a person should look at, in one sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.formatting import counted
from common.protocol.codec import Refusal
from server.release.choice import Choice
from server.rounds.judgement.conduct import BAD_ROUNDS, ROUNDS, is_copying, is_dispute, is_odd
from server.rounds.judgement.copies import NEAR_COPY
from server.rounds.judgement.drift import FAR, far_below_since
from server.run_store.folder import RunState
from server.site_weights import overstated

OFTEN = f"in {BAD_ROUNDS} of its last {ROUNDS} rounds"
_REASONS: Mapping[Refusal, str] = {
    Refusal.OPPOSED: f"its updates pushed against those of the other sites {OFTEN}",
    Refusal.ZERO_UPDATE: f"its replies were refused {OFTEN}, the last one because its update was zero",
    Refusal.REPEATED_UPDATE: f"its replies were refused {OFTEN}, the last one because it sent an earlier update again",
}


def alarms_of_round(state: RunState, scales: Mapping[str, float]) -> dict[str, str]:
    """Return the alarms after a round, by a key that stays the same while the cause does.

    Parameters
    ----------
    state
        State of the run, with the conduct of this round.
    scales
        Site -> factor by which its update of this round was scaled.
    """
    alarms = alarms_of_quarantine(state)
    for site in sorted(set(state.conduct) - set(state.quarantine)):
        if copied := _copied(state, site):
            alarms[f"copy {site}"] = f"{copied}; the site does not train, ask it why"
        elif is_odd(state.conduct[site]):
            alarms[f"watch {site}"] = (
                f"{OFTEN}, replies of {site} were refused, scaled down, or pushed against the other sites; ask the "
                "site, and if it cannot say why, end the run or leave the site out"
            )
    disputing = [site for site in sorted(state.conduct) if is_dispute(state.conduct[site])]
    if disputing:
        names = _listed(disputing)
        alarms[f"dispute {names}"] = (
            f"the updates of {names} disagree in {BAD_ROUNDS} of the last {ROUNDS} rounds, and no majority tells which "
            "of them is wrong; look at all of them, and end the run or leave a site out"
        )
    if len(scales) == 2 and min(scales.values()) < 1:
        longer, shorter = sorted(scales, key=scales.__getitem__)
        alarms[f"length {longer}"] = (
            f"the update of {longer} is much longer than that of {shorter} and is scaled down to it; with two sites "
            "nobody can tell which of them is wrong"
        )
    return alarms


def _copied(state: RunState, site: str) -> str:
    """Return in words what a site sends instead of its own work; empty if it works."""
    last = state.conduct[site][-1:]
    if last == [Refusal.ZERO_UPDATE]:
        return f"the update of {site} was zero: it sent back the model that it was sent"
    if last == [Refusal.REPEATED_UPDATE]:
        return f"the update of {site} was a copy of an earlier update"
    if is_copying(state.conduct[site]):
        return (
            f"{OFTEN}, the update of {site} was nearly a copy of its last one, of the model's last step or of the "
            f"model that it was sent (cosine of {NEAR_COPY} or more)"
        )
    return ""


def alarms_of_quarantine(state: RunState) -> dict[str, str]:
    """Return the alarms about the sites in quarantine."""
    return {
        f"quarantine {site}": _quarantined(state, site, reason) for site, reason in sorted(state.quarantine.items())
    }


def alarms_of_drift(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the alarm about a federation that loses what its sites learn.

    Parameters
    ----------
    lines
        Lines of ``rounds.jsonl``, the newest last.
    """
    since = far_below_since(lines)
    if since is None:
        return {}
    text = (
        f"since round {since}, the models that most sites trained score more than {FAR} Dice above the global model "
        "that comes of them: combining the updates loses what sites learn; compare the sites' labels and scans, lower "
        "training.local_steps, or choose another strategy.name"
    )
    return {"drift": text}


def alarms_of_patients(rule: str | Mapping[str, int], patients: Mapping[str, int]) -> dict[str, str]:
    """Return the alarms about the numbers of training patients that the sites of a round declare.

    Parameters
    ----------
    rule
        ``strategy.weights`` of the federation file.
    patients
        Site -> declared number of training patients, of the sites whose updates count.
    """
    return {
        f"patients {site}": (
            f"{site} declares {counted(patients[site], 'training patient')}, far more than the other sites (median "
            f"{median:g}), and counts like that median; ask the site, and if the number is right, give every site its "
            "number in strategy.weights of the next federation"
        )
        for site, median in overstated(rule, patients).items()
    }


def _quarantined(state: RunState, site: str, reason: Refusal) -> str:
    if site in state.changed and site in state.declared:
        return (
            f"{site} is in quarantine: it declared {_patients(*state.changed[site])}, after "
            f"{_patients(*state.declared[site])} at first; its data changed, or it tells patients apart in another way "
            "(patients.csv, patient_from_name). Ask the site; then run fedvox-server release to let it back in "
            "with the numbers that it declares from now on"
        )
    cause = _REASONS.get(reason, f"its replies were refused {OFTEN}, the last one for {reason}")
    return f"{site} is in quarantine: {cause}; run fedvox-server release to let it back in"


def _patients(training: int, validation: int) -> str:
    return f"{counted(training, 'training patient')} and {counted(validation, 'validation patient')}"


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def alarms_of_choice(choice: Choice) -> dict[str, str]:
    """Return the alarms about the choice of the released round."""
    if choice.left_out:
        text = (
            f"the scores of {choice.left_out} are left out: with them round {choice.by_all} would be released, and "
            f"every other site prefers round {choice.round}; both models are in checkpoints/"
        )
        return {f"scores {choice.left_out}": text}
    if choice.disputed:
        others = ", ".join(f"round {choice.without[site]} without {site}" for site in choice.disputed)
        text = (
            f"the choice of the released round depends on one site: round {choice.round} with all scores, {others}; "
            "the models are in checkpoints/, and a person must say which to use"
        )
        return {"release": text}
    return {}
