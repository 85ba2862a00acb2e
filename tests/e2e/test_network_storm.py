"""Seventy kills and stops at random moments of one run, drawn from a seed, and the model is that of a simulation."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.ledger.ledger import Ledger
from common.audit import verify
from server.run_store.locks import app_holder
from tests.e2e.network_federation import SCRIPTED, Federation, federation, simulated, wait_for
from tests.e2e.test_network_kills import assert_one_answer_a_round

pytestmark = [pytest.mark.network, pytest.mark.long]

SITES = ("east", "north", "west")
HELD = "west"
"""The site that holds every round until its share of the acts is done."""
ROUNDS = 10
ACTS_A_ROUND = 7
LONGEST_PAUSE_SECONDS = 2.0
LONGEST_STOP_SECONDS = 3.0
PATIENCE_SECONDS = 600
TARGETS = (
    *("gateway", "superlink", "superexec", "app", "server"),
    *(f"{site}/{half}" for site in SITES for half in ("courier", "runner")),
    *SITES,
)
"""Processes; ``server`` and a site's name stand for the supervisor, with which all its processes die."""


class Storm:
    """Kills and stops processes of a federation.

    Args:
        made: the federation.
        seed: of what is drawn.
    """

    def __init__(self, made: Federation, seed: int) -> None:
        self._made = made
        self._random = np.random.default_rng(seed)
        self.acts: list[str] = []

    def act(self) -> None:
        """Waits for a moment, and kills or stops one process that is alive."""
        time.sleep(self._random.uniform(0, LONGEST_PAUSE_SECONDS))
        while True:
            target = str(self._random.choice(TARGETS))
            pid = self._pid(target)
            if pid is not None:
                break
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            if self._random.random() < 1 / 3 and target not in ("server", *SITES):
                self._stop(target, pid)
            else:
                self._kill(target, pid)

    def _stop(self, target: str, pid: int) -> None:
        seconds = self._random.uniform(0, LONGEST_STOP_SECONDS)
        self.acts.append(f"{target} stopped for {seconds:.1f} s")
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)

    def _kill(self, target: str, pid: int) -> None:
        self.acts.append(f"{target} killed")
        os.kill(pid, signal.SIGKILL)
        if target == "server":
            self._made.processes["server"].wait()
            self._made.start_server()
        elif target in SITES:
            self._made.processes[target].wait()
            self._made.start_site(target, client=SCRIPTED)

    def _pid(self, target: str) -> int | None:
        if target == "app":
            holder = app_holder(self._made.run)
            return holder.pid if holder is not None and holder.alive else None
        if target in ("server", *SITES):
            return self._made.processes[target].pid
        site, _, half = target.partition("/")
        with suppress(KeyError):
            return self._made.site_pid(site, half) if half else self._made.pid(target)
        return None


def is_held(made: Federation, round_number: int) -> bool:
    assert made.processes["server"].poll() is None, made.log("server")[-2000:]
    return made.held_in(HELD) == round_number


def run_through(made: Federation, seed: int) -> Storm:
    """Runs a federation to its end, with the same number of acts in every round, at least."""
    made.hold(HELD)
    made.start(*SITES, scripted=SITES)
    storm = Storm(made, seed)
    for number in range(1, ROUNDS + 1):
        release = int(np.random.default_rng([seed, number]).integers(ACTS_A_ROUND))
        for index in range(ACTS_A_ROUND):
            if index == release:
                wait_for(lambda number=number: is_held(made, number), PATIENCE_SECONDS, f"round {number}, {storm.acts}")
                made.hold(HELD, *range(number + 1, ROUNDS + 2))
            storm.act()
    made.finish(PATIENCE_SECONDS)
    return storm


def test_after_seventy_kills_and_stops_the_model_is_the_same_to_the_bit(tmp_path: Path) -> None:
    settings = (f"rounds={ROUNDS}", "strategy.min_sites=3")
    with federation(tmp_path, SITES, settings) as made:
        storm = run_through(made, seed=14)
        assert len(storm.acts) >= 70
        lines = made.rounds()
        assert [line["round"] for line in lines] == list(range(1, ROUNDS + 2))
        outcomes = {(line["round"], site): entry["reason"] for line in lines for site, entry in line["sites"].items()}
        assert outcomes == {(number, site): None for number in range(1, ROUNDS + 2) for site in SITES}, storm.acts
        verify(made.run / "audit.jsonl")
        for site in SITES:
            assert_one_answer_a_round(made, site)
        name = f"checkpoints/round_{ROUNDS:04d}.safetensors"
        ours, theirs = (load_file(run / name) for run in (made.run, simulated(made, tmp_path / "undisturbed").path))
        for part, values in theirs.items():
            np.testing.assert_array_equal(ours[part], values, err_msg=f"{part}, after {storm.acts}")


def test_after_seventy_kills_and_stops_no_epsilon_is_spent_twice(tmp_path: Path) -> None:
    privacy = "privacy={epsilon: 50, delta: 1e-5, sample_rate: 0.5, validation: 'off'}"
    with federation(tmp_path, SITES, (f"rounds={ROUNDS}", "strategy.min_sites=3", privacy)) as made:
        storm = run_through(made, seed=41)
        assert len(storm.acts) >= 70
        entries = Ledger(made.ledger).read().rounds
        paid = [(each.entry.round, spend.dataset) for each in entries for spend in each.entry.spends]
        assert len(paid) == len(set(paid)) == len(SITES) * ROUNDS, storm.acts
        for site in SITES:
            assert_one_answer_a_round(made, site)
