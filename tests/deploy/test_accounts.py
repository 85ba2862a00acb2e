"""Courier and runner under accounts of their own, as the units of ``deploy/systemd`` run them; one folder for both."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.deploy.machine import Machine
from tests.deploy.stacks import Coordinator, Hospital, own_address, removed_at_the_end
from tests.e2e.network_federation import Federation, assert_same_model, simulated

pytestmark = [pytest.mark.deploy, pytest.mark.slow]

APART = Path(__file__).with_name("accounts.yaml")
SITES = ("east", "north")
COURIER, RUNNER, BOTH = 10002, 10001, 10003
"""Numbers of the accounts, and of the group in common; as in ``accounts.yaml``."""


def test_two_accounts_with_a_group_in_common_share_nothing_but_the_folder(machine: Machine, tmp_path: Path) -> None:
    made = Federation(tmp_path, SITES, ("rounds=2", f"network.address={own_address()}"))
    coordinator = Coordinator(machine, made)
    apart, together = Hospital(machine, made, "east", APART), Hospital(machine, made, "north")
    shutil.chown(made.kits / "sites/east/site.key", COURIER, COURIER)
    os.chown(apart.shared.path, 0, BOTH)
    # As `install -d -m 2770` makes it.
    apart.shared.path.chmod(0o2770)
    with removed_at_the_end(coordinator, apart, together):
        coordinator.start()
        made.run = coordinator.run
        for hospital in (apart, together):
            hospital.join()
        coordinator.wait_until(lambda: not coordinator.is_running("server"), "server", "the end", 300)
        assert [line["sites"].keys() for line in made.rounds()] == [set(SITES)] * 3
        assert_same_model(made.run, simulated(made, tmp_path / "simulated").path, 2)
        for folder in (apart.shared.inbox, apart.shared.outbox):
            assert folder.stat().st_gid == BOTH and folder.stat().st_uid in (COURIER, RUNNER)
            assert not folder.stat().st_mode & 0o007
        # What was delivered was removed by the half that had not written it.
        assert apart.shared.replies() == apart.shared.tasks() == []
