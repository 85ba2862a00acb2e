"""A federation's server over a network: real processes, real TLS."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from client.consent.sent_summary import NUMBERS, UPDATE, departures
from client.state_folder import AUDIT_FILE
from common.audit import read_entries, verify
from common.models.bundle import load_bundle
from common.system.supervisor import free_port
from server.provisioning.kits import revoke
from tests.e2e.network_federation import (
    NICE,
    Federation,
    assert_same_model,
    federation,
    processes_in,
    simulated,
    wait_for,
)
from tests.kits import change_kit

pytestmark = pytest.mark.network

SCAFFOLD = ("strategy.name=scaffold", "training.optimizer=sgd", "training.learning_rate=0.2")


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server that waits for all its sites, however late they come; ``lost`` was provisioned and then revoked.

    With SCAFFOLD, whose sites receive a second vector and keep one. Its tracking server is down all the time.
    """
    everybody = ("strategy.min_sites=3", *SCAFFOLD)
    with federation(tmp_path_factory.mktemp("waiting"), ("east", "lost", "north", "west"), everybody) as made:
        revoke(made.kits, "lost")
        tracking = made.folder / "tracking.yaml"
        tracking.write_text(f"mlflow: http://kathe:s3cret@127.0.0.1:{free_port()}\n", encoding="utf-8")
        made.server_options = ("--tracking", str(tracking), "--metrics", str(free_port()))
        made.start_server("--page", f"127.0.0.1:{free_port()}")
        wait_for(made.is_up, 120, "a server that waits for sites")
        yield made


@pytest.fixture(scope="module")
def shown() -> list[str]:
    """What the page beside the server showed of the run, each time that it had changed."""
    return []


@pytest.fixture(scope="module")
def finished(waiting: Federation, shown: list[str]) -> Federation:
    """The same, joined by three sites, at its end."""
    server = waiting.processes["server"]
    link = re.search(r"to look: (\S+)/sign-in\?token=(\S+)", waiting.log("server"))
    assert link is not None
    with httpx.Client(base_url=link[1], headers={"Origin": link[1]}, timeout=60) as client:
        assert client.post("/sign-in", data={"token": link[2]}).status_code == 303

        def look() -> bool:
            with suppress(httpx.TransportError):  # the page ends with the server
                said = " ".join(re.sub(r"<[^>]*>", " ", client.get("/runs/0").text.partition("<main")[2]).split())
                if said not in shown[-1:]:
                    shown.append(said)
            return server.poll() is not None

        look()
        for site in ("east", "north", "west"):
            waiting.start_site(site)
        wait_for(look, 240, "the end of the federation")
    return waiting


def test_a_second_server_on_the_same_run_is_refused(waiting: Federation) -> None:
    *second, _, _ = [*NICE, *waiting.server_command()]  # without --metrics, whose port is taken, too
    done = subprocess.run(second, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "running already" in done.stderr


def test_status_tells_the_truth_while_it_waits(waiting: Federation) -> None:
    status = waiting.status()
    assert status["status"] == "running"
    assert {process["state"] for process in status["network"]["processes"].values()} == {"ready"}
    assert not any(site["connected"] for site in status["network"]["sites"].values())


def test_metrics_tell_the_truth_while_it_waits(waiting: Federation) -> None:
    served = httpx.get(f"http://127.0.0.1:{waiting.server_options[-1]}/metrics").text
    assert "fedvox_server_up 1.0" in served
    assert 'fedvox_server_site_connected{site="west"} 0.0' in served
    assert 'fedvox_server_process_ready{process="gateway"} 1.0' in served


def test_a_site_with_anothers_name_does_not_start(waiting: Federation) -> None:
    kit = waiting.folder / "impostor"
    shutil.copytree(waiting.kits / "sites/west", kit)
    change_kit(kit, site="north")
    assert waiting.start_site("impostor", kit).wait(120) == 1
    assert "is the certificate of west, not of north" in waiting.log("impostor")
    assert not waiting.events("site_ready")


def test_what_a_site_notes_as_sent_is_what_the_server_notes_as_counted(finished: Federation) -> None:
    assert len(finished.rounds()) == finished.config.rounds + 1
    log = read_entries(finished.run / "audit.jsonl")
    noted = {entry.details["round"]: entry.details["sites"] for entry in log if entry.event == "round_done"}
    for line in finished.rounds():
        for site, entry in line["sites"].items():
            sent = [
                departure
                for departure in departures(read_entries(finished.state(site).path / AUDIT_FILE))
                if departure.round == line["round"] and departure.kind in (UPDATE, NUMBERS)
            ]
            assert (
                [departure.sha256 for departure in sent] == [entry["sha256"]] == [noted[line["round"]][site]["sha256"]]
            )
    hashes = [entry["sha256"] for line in finished.rounds() for entry in line["sites"].values()]
    assert len(set(hashes)) == len(hashes) >= 6


def test_three_sites_finish_three_rounds(finished: Federation) -> None:
    assert finished.processes["server"].returncode == 0, finished.log("server")
    rounds = finished.rounds()
    assert [(line["round"], line["phase"]) for line in rounds] == [
        (1, "train"),
        (2, "train"),
        (3, "train"),
        (4, "evaluate"),
    ]
    for line in rounds:
        assert {name: site["status"] for name, site in line["sites"].items()} == dict.fromkeys(
            ("east", "north", "west"), "ok"
        )
    assert load_bundle(finished.run / "model").provenance["sites"] == 3
    assert (finished.run / "report.html").stat().st_size > 10_000
    events = verify(finished.run / "audit.jsonl").events
    assert events["round_done"] == 4
    assert events["model_released"] == 1


def test_a_tracking_server_that_is_down_is_told_once_and_changes_nothing(finished: Federation) -> None:
    shown = finished.log("server")
    assert shown.count("tracking: mlflow: ") == 1
    assert "not everything was sent; to send it later: fedvox-server track" in shown
    files = [path for path in finished.folder.rglob("*") if path.is_file() and path.name != "tracking.yaml"]
    for secret in (b"s3cret", b64encode(b"kathe:s3cret")):
        assert [path for path in files if secret in path.read_bytes()] == []


@pytest.mark.usefixtures("finished")
def test_pages_beside_the_server_show_the_run_from_its_first_site_to_its_last_round(shown: list[str]) -> None:
    first, last = shown[0], shown[-1]
    assert "waiting for sites" in first
    assert first.count("not connected") == 4
    assert "No round is finished yet." in first
    found = [re.search(r"Rounds (\d) / 3", said) for said in shown]
    rounds = [number for number, _ in itertools.groupby(match[1] for match in found if match)]
    assert rounds == sorted(rounds)
    assert rounds[0] == "0"
    assert rounds[-1] == "3"
    assert len(rounds) > 2
    assert any("east connected" in said for said in shown)
    assert "No round is finished yet." not in last


def test_sites_keep_what_they_learnt_of_their_gradient(finished: Federation) -> None:
    """In their state folders; with every model goes a second vector as long, and with no update."""
    values = finished.run / "checkpoints" / "strategy_0003_control.f32"
    assert finished.rounds()[1]["bytes_down"] == 3 * 2 * values.stat().st_size
    assert finished.rounds()[1]["bytes_up"] == 3 * values.stat().st_size
    run = json.loads((finished.run / "state.json").read_bytes())["run"]
    for site in ("east", "north", "west"):
        kept = finished.state(site).vectors / "gradients" / run
        assert sorted(file.name for file in kept.iterdir()) == ["round_0002.safetensors", "round_0003.safetensors"]


def test_the_model_is_the_one_that_a_simulation_gives(finished: Federation, tmp_path: Path) -> None:
    """The same apps and data, without processes and network."""
    folder = simulated(finished, tmp_path / "run", ("east", "north", "west"))
    for mine, theirs in zip(folder.read_rounds(), finished.rounds(), strict=True):
        assert mine["dice"] == pytest.approx(theirs["dice"], abs=1e-6)
        assert mine["train_loss"] == (theirs["train_loss"] and pytest.approx(theirs["train_loss"], rel=1e-5))
    assert_same_model(finished.run, folder.path, 3)


def test_status_tells_the_truth_at_the_end(finished: Federation) -> None:
    status = finished.status()
    assert status["status"] == "finished"
    assert status["rounds_done"] == 3
    assert status["network"]["running"] is False


def test_nothing_is_left_running_and_no_secret_readable(finished: Federation) -> None:
    assert [line for line in processes_in(finished.kits / "server") if "pytest" not in line] == []
    assert (finished.run / "secret").stat().st_mode & 0o077 == 0
    assert finished.run.stat().st_mode & 0o077 == 0


def test_no_update_of_a_site_stays_at_the_server(finished: Federation) -> None:
    names = {file.name for file in finished.run.iterdir()}
    assert not names & {"updates", "gateway", "superlink.db", "superlink.db-wal", "superlink.db-shm"}
    assert {"model", "rounds.jsonl", "audit.jsonl"} <= names


def test_starting_a_finished_federation_does_nothing(finished: Federation) -> None:
    before = (finished.run / "rounds.jsonl").read_bytes()
    done = subprocess.run(finished.server_command(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "nothing is left to do" in done.stderr
    assert (finished.run / "rounds.jsonl").read_bytes() == before


def test_a_revoked_site_is_shut_out_at_once_and_sigterm_ends_everything(tmp_path: Path) -> None:
    with federation(tmp_path, ("east", "north")) as made:
        server = made.start_server()
        wait_for(made.is_up, 120, "a server that waits for sites")
        made.start_site("east")
        wait_for(lambda: "east is connected" in made.log("server"), 120, "a site")
        revoke(made.kits, "east")
        wait_for(lambda: "east: key revoked" in made.log("server"), 30, "the end of a site")
        wait_for(lambda: made.refused_requests(), 60, "a refusal of the revoked site")
        wait_for(lambda: made.status()["network"]["refused"], 30, "the refusal in the status")
        assert "east" not in json.loads((made.run / "nodes.json").read_text()).values()
        wait_for((made.run / "state.json").exists, 60, "a run that has begun")
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 130
        assert "interrupted" in made.log("server")
        assert processes_in(made.kits / "server") == []
        assert made.status()["status"] == "interrupted"
