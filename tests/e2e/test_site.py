"""``fedvox-client start``, ``preflight`` and ``status`` with a real server that waits for its sites."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.network_federation import CLIENT, NICE, Federation, federation, wait_for

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server whose rounds never begin: one of its sites does not come."""
    names = ("absent", "north", "south", "west")
    with federation(tmp_path_factory.mktemp("waiting"), names, ("strategy.min_sites=4",)) as made:
        made.start_server()
        wait_for(made.is_up, 120, "a server that waits for sites")
        yield made


def command(made: Federation, site: str, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    kit = ["--kit", str(made.kits / "sites" / site)]
    return subprocess.run(
        [*NICE, *CLIENT, name, *kit, *options],
        env=made.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def status(made: Federation, site: str) -> dict[str, Any]:
    return json.loads(command(made, site, "status", "--json").stdout)  # type: ignore[no-any-return]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_ready(made: Federation, site: str) -> bool:
    return bool(made.at_site(site).get("ready"))


def test_start_status_and_the_end(waiting: Federation) -> None:
    assert status(waiting, "north") == {"site": "north", "federation": "tiny-network", "running": False}
    process = waiting.start_site("north")
    wait_for(lambda: is_ready(waiting, "north"), 120, "a site")
    found = status(waiting, "north")
    assert found["running"] and found["connected"] and found["ready"]
    assert found["runner"]["train"] == 3 - found["runner"]["validation"]
    pids = [entry["pid"] for entry in found["processes"].values()]
    assert sorted(found["processes"]) == ["courier", "runner"] and all(map(alive, pids))
    again = command(waiting, "north", "start", "--data", str(waiting.data("north")), "--device", "cpu")
    assert again.returncode == 1 and "already running" in again.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert not any(map(alive, pids))
    assert status(waiting, "north") == {"site": "north", "federation": "tiny-network", "running": False}


def test_what_dies_comes_back_and_the_supervisors_death_ends_all(waiting: Federation) -> None:
    process = waiting.start_site("south")
    wait_for(lambda: is_ready(waiting, "south"), 120, "a site")
    for name in ("runner", "courier"):
        pid = waiting.site_pid("south", name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda name=name: waiting.at_site("south")["processes"][name]["restarts"] == 1, 30, "notice")
        wait_for(lambda: is_ready(waiting, "south"), 90, f"another {name}")
    pids = [entry["pid"] for entry in waiting.at_site("south")["processes"].values()]
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, pids)), 30, "the children's end")
    assert not status(waiting, "south")["running"]


def test_tasks_need_an_approval(waiting: Federation) -> None:
    # Before approval: only the start, which Federation.start_site would precede with one.
    kit = waiting.kits / "sites/west"
    data = ["--data", str(waiting.data("west")), "--cache", str(waiting.folder / "cache"), "--device", "cpu"]
    waiting._start("west", [*CLIENT, "start", "--kit", str(kit), *data])

    def reasons() -> list[str]:
        return [event["reason"] for event in waiting.events("site_unusable") if event["site"] == "west"]

    wait_for(lambda: "not-approved" in reasons(), 120, "a refusal")
    assert not [event for event in waiting.events("site_ready") if event["site"] == "west"]
    assert command(waiting, "west", "approve", "--user", "Dr. Example").returncode == 0
    wait_for(lambda: [e for e in waiting.events("site_ready") if e["site"] == "west"], 120, "a site that takes part")
    audit = command(waiting, "west", "audit", "--verify")
    assert audit.returncode == 0, audit.stderr
    assert "error codes" in audit.stdout


def test_a_preflight_that_fails_keeps_the_site_from_starting(waiting: Federation) -> None:
    data = ["--data", str(waiting.data("absent")), "--device", "cpu", "--no-cache"]
    looked = command(waiting, "absent", "preflight", *data)
    assert looked.returncode == 0, looked.stdout + looked.stderr
    key = waiting.kits / "sites/absent/site.key"
    key.chmod(0o644)
    looked = command(waiting, "absent", "preflight", *data)
    assert looked.returncode == 1 and "chmod 600" in looked.stdout
    started = command(waiting, "absent", "start", *data)
    assert started.returncode == 1
    assert "not started; fix first: kit" in started.stderr
    assert "Traceback" not in started.stderr
