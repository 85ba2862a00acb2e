"""A federation whose sites hang, die, come late, or lie: the others finish, and the record says what happened."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from common.models.bundle import load_bundle
from tests.e2e.network_federation import Federation, assert_same_model, federation, simulated, wait_for

pytestmark = pytest.mark.network

DEADLINE_SECONDS = 30
SILENCE_SECONDS = 20
QUORUM = 2
FINE = ("ok", None)


class DiesInEveryRound:
    """Kills a site's runner in the middle of every round's training, once."""

    def __init__(self, made: Federation, site: str) -> None:
        self._made = made
        self._site = site
        self.rounds: list[int] = []

    def look(self) -> None:
        found = self._made.held_in(self._site)
        pid = self._made.site_pid(self._site, "runner")
        if found is not None and found not in self.rounds and pid is not None:
            os.kill(pid, signal.SIGKILL)
            self.rounds.append(found)
            self._made.hold(self._site, *range(found + 1, 10))


def outcome(line: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    """What became of every site that was asked in a round."""
    return {name: (site["status"], site["reason"]) for name, site in line["sites"].items()}


@pytest.mark.long
def test_others_finish_when_a_site_hangs_one_dies_in_every_round_and_one_comes_late(tmp_path: Path) -> None:
    settings = (
        "strategy={min_sites: 2, min_fraction: 0.5}",
        f"network.round_deadline_seconds={DEADLINE_SECONDS}",
    )
    with federation(tmp_path, ("dying", "east", "hanging", "late", "north"), settings) as made:
        key = made.kits / "server/sites/late.crt"
        key.rename(tmp_path / "late.crt")
        dying = DiesInEveryRound(made, "dying")
        made.hold("dying")
        made.hold("hanging", 2, 3)
        made.start("dying", "east", "hanging", "north", scripted=("dying", "hanging"))
        wait_for(lambda: dying.look() or made.rounds(), 120, "the first round")
        (tmp_path / "late.crt").rename(key)
        made.start_site("late")
        wait_for(lambda: dying.look() or made.held_in("hanging"), 60, "a site in training")
        hanging = made.site_pid("hanging", "runner")
        assert hanging is not None
        os.kill(hanging, signal.SIGSTOP)
        try:
            made.finish(200, dying.look)
        finally:
            os.kill(hanging, signal.SIGCONT)

        rounds = made.rounds()
        phases = [(line["round"], line["phase"]) for line in rounds]
        assert phases == [(1, "train"), (2, "train"), (3, "train"), (4, "evaluate")]
        assert dying.rounds == [1, 2, 3]
        missed = ("missing", "deadline")
        # A runner that was killed goes on with its task.
        assert outcome(rounds[0]) == {"dying": FINE, "east": FINE, "hanging": FINE, "north": FINE}
        assert outcome(rounds[1]) == {"dying": FINE, "east": FINE, "hanging": missed, "north": FINE}
        # Nothing is claimed of the site that hangs: it does not answer any more, and so it is not asked.
        assert outcome(rounds[2]) == {"dying": FINE, "east": FINE, "late": FINE, "north": FINE}
        assert outcome(rounds[3]) == {"dying": FINE, "east": FINE, "late": FINE, "north": FINE}
        assert rounds[1]["seconds"] >= DEADLINE_SECONDS > rounds[2]["seconds"]
        assert all(list(outcome(line).values()).count(FINE) >= QUORUM for line in rounds)
        why = {(event["round"], event["site"]): event["reason"] for event in made.events("site_not_counted")}
        assert why == {(2, "hanging"): "deadline"}
        assert not made.events("round_failed")
        assert load_bundle(made.run / "model").provenance["sites"] >= QUORUM


@pytest.mark.long
def test_a_site_without_a_sign_of_life_is_given_up_soon_and_one_at_work_is_not(tmp_path: Path) -> None:
    """The courier of one is frozen; the other works in one round for longer than silence is tolerated, and says so."""
    settings = (
        "strategy={min_sites: 2, min_fraction: 0.5}",
        "network.heartbeat_seconds=2",
        f"network.silence_deadline_seconds={SILENCE_SECONDS}",
    )
    with federation(tmp_path, ("east", "mute", "slow"), settings) as made:
        for site in ("mute", "slow"):
            made.hold(site, 1)
        made.start(*made.sites, scripted=("mute", "slow"))
        wait_for(lambda: made.held_in("mute") == made.held_in("slow") == 1, 240, "two sites in training")
        mute = made.site_pid("mute", "courier")
        assert mute is not None
        os.kill(mute, signal.SIGSTOP)
        try:
            wait_for(lambda: made.events("site_not_counted"), 120, "a site that is given up")
            (made.state("slow").path / "hold").unlink()
            wait_for(made.rounds, 60, "the first round")
        finally:
            os.kill(mute, signal.SIGCONT)
        made.finish(200)
        first, *_, last = made.rounds()
        assert outcome(first) == {"east": FINE, "mute": ("missing", "silence"), "slow": FINE}
        assert SILENCE_SECONDS < first["seconds"] < made.config.network.round_deadline_seconds / 10
        assert outcome(last)["east"] == outcome(last)["slow"] == FINE


def test_what_a_lying_site_sends_is_refused_with_its_reason_and_never_counted(tmp_path: Path) -> None:
    lies = {"mallory": ["nan", "norm", "nan"], "trudy": ["patients", "replay", "replay"]}
    refused = {
        "mallory": ["not-finite", "norm-outlier", "not-finite"],
        "trudy": ["examples-differ", "wrong-round", "wrong-round"],
    }
    honest = ("east", "north")
    settings = ("rounds=4", "strategy={min_sites: 2, min_fraction: 0.5}")
    with federation(tmp_path, (*honest, *lies), settings) as made:
        for site, told in lies.items():
            made.state(site).make()
            (made.state(site).path / "lies").write_text("\n".join(told))
        made.start(*made.sites, scripted=tuple(lies))
        made.finish(200)

        rounds = made.rounds()
        everybody_else = dict.fromkeys(honest, FINE)
        for number in range(3):
            expected = {site: ("refused", reasons[number]) for site, reasons in refused.items()}
            assert outcome(rounds[number]) == everybody_else | expected
        assert [outcome(line) for line in rounds[3:]] == [everybody_else, everybody_else]
        why = [(event["round"], event["site"], event["reason"]) for event in made.events("site_not_counted")]
        assert sorted(why) == sorted(
            (number + 1, site, reason) for site, reasons in refused.items() for number, reason in enumerate(reasons)
        )
        quarantined = {event["site"]: event["reason"] for event in made.events("site_quarantined")}
        assert quarantined == {site: reasons[-1] for site, reasons in refused.items()}
        # Not a trace of them is in the model: it is the one that the honest sites make among themselves.
        alone = simulated(made, tmp_path / "alone", honest)
        assert_same_model(made.run, alone.path, 4)
