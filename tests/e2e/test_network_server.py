"""A federation's server over a network: real processes, real TLS, and somebody who kills them."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.parse
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from fastapi.routing import iter_route_contexts
from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import remove_content_from_message
from flwr.superlink.main import create_app
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from safetensors.numpy import load_file

from client.approvals import AUDIT_FILE
from client.departures import NUMBERS, UPDATE, departures
from common.audit import read_entries, verify
from common.bundle import load_bundle
from common.flower import flower_environment
from common.protocol import SiteInfo, pack_info
from common.supervise import Child, Supervisor, answers, free_port
from server.app_lock import app_holder
from server.authority import Authority, public_key_pem
from server.provision import revoke
from server.proxy import FLEET_METHODS, MOST_REQUESTS, Listen, find_nginx, write_proxy_configuration
from tests.e2e.network_federation import (
    NICE,
    Federation,
    assert_same_model,
    federation,
    processes_in,
    simulated,
    wait_for,
)

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("nginx")]


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server that waits for all its sites, however late they come; ``lost`` was provisioned and then revoked."""
    everybody = ("strategy.min_sites=3",)
    with federation(tmp_path_factory.mktemp("waiting"), ("east", "lost", "north", "west"), everybody) as made:
        revoke(made.kits, "lost")
        made.start_server()
        wait_for(made.is_up, 120, "a server that waits for sites")
        yield made


@pytest.fixture(scope="module")
def finished(waiting: Federation) -> Federation:
    """The same, joined by three sites, at its end."""
    for site in ("east", "north", "west"):
        waiting.start_site(site)
    server = waiting.processes["server"]
    wait_for(lambda: server.poll() is not None, 240, "the end of the federation")
    return waiting


def ask(made: Federation, path: str, method: str = "POST", body: bytes = b"", **headers: str) -> int:
    """The status of one request through the proxy; the path goes out as it is written here."""
    context = ssl.create_default_context(cafile=made.kits / "sites/east/ca.crt")
    connection = http.client.HTTPSConnection("127.0.0.1", made.port, context=context, timeout=20)
    try:
        connection.request(method, path, body, {"content-type": PROTOBUF_MEDIA_TYPE} | headers)
        return connection.getresponse().status
    finally:
        connection.close()


def superlink_paths() -> set[str]:
    """Every path that SuperLink serves."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    contexts = iter_route_contexts(create_app().routes)
    return {context.path for context in contexts if context.path is not None}


def test_no_path_but_a_sites_own_passes_the_proxy(waiting: Federation) -> None:
    allowed = {f"/v1/fleet/{method}" for method in FLEET_METHODS}
    everything = superlink_paths()
    assert allowed < everything
    assert len(everything) > 70
    forbidden = [*(path for path in everything if path not in allowed), "/", "/docs", "/openapi.json", "/v1/fleet/"]
    answers_ = {path: ask(waiting, path) for path in forbidden}
    assert set(answers_.values()) == {403}, answers_
    # What a site may ask reaches SuperLink, and that wants a signature.
    assert {ask(waiting, path) for path in allowed} == {401}
    assert {ask(waiting, path, "GET") for path in allowed} == {403}


@pytest.mark.parametrize(
    "path",
    [
        "//v1/control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/get-run/../../control/start-run",
        "/v1/fleet/get-run/..%2f..%2fcontrol/start-run",
        "/v1/fleet%2f..%2fcontrol%2fstart-run",
        "/v1/fleet/get-run%00/../../control/start-run",
        "/v1/control/start-run?/v1/fleet/get-run",
        "/v1/control/start-run;/v1/fleet/get-run",
        "/v1/fleet/get-run/",
        "/V1/control/start-run",
        "/v1/%63ontrol/start-run",
        "https://127.0.0.1/v1/control/start-run",
    ],
)
def test_no_spelling_of_a_path_fools_the_proxy(waiting: Federation, path: str) -> None:
    assert ask(waiting, path) in (400, 403)
    assert "start-run?/" not in (waiting.run / "logs/superlink.log").read_text()


def test_a_path_that_only_ends_at_a_sites_own_reaches_nothing_else(waiting: Federation) -> None:
    # The proxy reads this as a site's path; SuperLink must then see that very path, and not the spelling.
    assert ask(waiting, "/v1/control/../fleet/get-run") == 401
    assert "/v1/control/.." not in (waiting.run / "logs/superlink.log").read_text()


def test_nobody_submits_a_run_or_takes_a_task_through_the_proxy(waiting: Federation) -> None:
    authority = (waiting.kits / "sites/east/ca.crt").read_bytes()
    address = f"127.0.0.1:{waiting.port}"
    control = ControlHttpClient.from_server_address(address, False, authority, [])
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        control.StartRun(StartRunRequest())
    runtime = RuntimeHttpClient.from_server_address(address, False, authority, [])
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        runtime.AcquireTask(AcquireTaskRequest())


def test_a_body_that_is_too_large_is_refused(waiting: Federation) -> None:
    assert ask(waiting, "/v1/fleet/push-object", body=b"x", **{"content-length": str(10**12)}) == 413


def test_the_large_body_of_a_stranger_is_not_waited_for(waiting: Federation) -> None:
    context = ssl.create_default_context(cafile=waiting.kits / "sites/east/ca.crt")
    connection = http.client.HTTPSConnection("127.0.0.1", waiting.port, context=context, timeout=30)
    try:
        connection.putrequest("POST", "/v1/fleet/push-object")
        connection.putheader("content-type", PROTOBUF_MEDIA_TYPE)
        connection.putheader("content-length", str(10 * 2**20))
        connection.endheaders(b"the first bytes of many")
        assert connection.getresponse().status == 401
    finally:
        connection.close()


def test_a_stranger_is_turned_away_by_certificate_or_key(waiting: Federation, tmp_path: Path) -> None:
    Authority.create("other").save(tmp_path)
    lost, own = waiting.kits / "sites/lost", waiting.kits / "sites/east"
    wrong_authority = supernode(waiting, tmp_path / "ca.crt", own / "node.key")
    unregistered = supernode(waiting, own / "ca.crt", lost / "node.key")
    assert "CERTIFICATE_VERIFY_FAILED" in ended(wrong_authority)
    assert "2004" in ended(unregistered)
    assert not waiting.events("site_ready")


def supernode(made: Federation, authority: Path, key: Path) -> subprocess.Popen[str]:
    command = [*NICE, str(Path(sys.executable).with_name("flower-supernode"))]
    command += ["--superlink", f"127.0.0.1:{made.port}", "--root-certificates", str(authority)]
    command += ["--port", str(free_port()), "--isolation", "process", "--auth-supernode-private-key", str(key)]
    environment = flower_environment(made.folder / "stranger") | {"NO_COLOR": "1", "COLUMNS": "500"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode != 0
    return output


@contextmanager
def proxy_alone(folder: Path, superlink: int) -> Iterator[int]:
    """nginx as it is configured, with the kit in a folder."""
    port = free_port()
    file = write_proxy_configuration(folder / "proxy", folder, Listen("127.0.0.1", port), f"127.0.0.1:{superlink}")
    nginx = Child("proxy", [find_nginx(), "-c", str(file)], dict(os.environ), folder / "log", lambda: answers(port))
    supervisor = Supervisor([nginx], lambda name, event: None)
    supervisor.start()
    try:
        wait_for(lambda: supervisor.poll() or supervisor.all_ready, 20, "nginx")
        yield port
    finally:
        supervisor.stop()


def issue(folder: Path, begin: datetime | None = None) -> None:
    """A server's certificate of one day and its authority."""
    authority = Authority.create("tiny")
    authority.save(folder)
    issued = authority.issue(["127.0.0.1"], 1, begin)
    (folder / "server.crt").write_bytes(issued.certificate)
    (folder / "server.key").write_bytes(issued.key)


def test_an_expired_certificate_is_not_accepted(tmp_path: Path) -> None:
    issue(tmp_path, datetime.now(UTC) - timedelta(days=2))
    context = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    with (
        proxy_alone(tmp_path, free_port()) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError, match="expired"),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_second_server_on_the_same_run_is_refused(waiting: Federation) -> None:
    second = [*NICE, *waiting.server_command()]
    done = subprocess.run(second, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "running already" in done.stderr


def test_status_tells_the_truth_while_it_waits(waiting: Federation) -> None:
    status = waiting.status()
    assert status["status"] == "running"
    assert {process["state"] for process in status["network"]["processes"].values()} == {"ready"}
    assert not any(site["connected"] for site in status["network"]["sites"].values())


def test_a_site_with_anothers_name_does_not_take_part(waiting: Federation) -> None:
    kit = waiting.folder / "impostor"
    shutil.copytree(waiting.kits / "sites/west", kit)
    content = yaml.safe_load((kit / "kit.yaml").read_text()) | {"site": "north"}
    (kit / "kit.yaml").write_text(yaml.safe_dump(content))
    impostor = waiting.start_site("impostor", kit)

    def refused() -> bool:
        return any(event["reason"] == "wrong-site" for event in waiting.events("site_unusable"))

    try:
        wait_for(refused, 90, "a refusal")
    finally:
        impostor.send_signal(signal.SIGTERM)
        impostor.wait(30)
    assert not waiting.events("site_ready")


def test_a_registered_site_cannot_speak_for_another(waiting: Federation) -> None:
    """With its own key, past the proxy: what SuperLink would take for an answer of whomever the server asks."""
    kit = waiting.kits / "sites/west"
    private = load_ssh_private_key((kit / "node.key").read_bytes(), None)
    assert isinstance(private, EllipticCurvePrivateKey)
    proof = NodeAuthHttpInterceptor(private, private.public_key())
    version = RuntimeVersionHttpInterceptor(component_name="SuperNode")
    authority = (kit / "ca.crt").read_bytes()
    public = public_key_pem((kit / "node.pub").read_text())
    with FleetHttpClient.from_server_address(f"127.0.0.1:{waiting.port}", False, authority, [version, proof]) as client:
        node = client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=30)).node_id
        asked: list[Any] = []

        def greeted() -> bool:
            asked.extend(client.PullMessages(PullMessagesRequest(node=Node(node_id=node))).messages_list)
            return bool(asked)

        wait_for(greeted, 60, "a greeting")
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = asked[0].metadata.run_id, 1, 1
        info = SiteInfo("north", 10, 2, "0", "0", "0", "0", "cpu", "float32")
        forged = Message(pack_info(info), SUPERLINK_NODE_ID, "query")
        forged.metadata.__dict__["_message_id"] = forged.object_id
        request = PushMessagesRequest(
            node=Node(node_id=node),
            messages_list=[message_to_proto(remove_content_from_message(forged))],
            message_object_trees=[get_object_tree(forged)],
        )
        try:
            with pytest.raises(httpx.HTTPStatusError, match="403"):
                client.PushMessages(request)
        finally:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node))
    assert f"node {node} is refused: a message of somebody else" in (waiting.run / "logs/superlink.log").read_text()


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


def test_the_model_is_the_one_that_a_simulation_gives(finished: Federation, tmp_path: Path) -> None:
    """The same apps and data, without processes, network and proxy."""
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
    assert not names & {"spool", "objects", "superlink.db", "superlink.db-wal", "superlink.db-shm"}
    assert {"model", "rounds.jsonl", "audit.jsonl"} <= names


def test_starting_a_finished_federation_does_nothing(finished: Federation) -> None:
    before = (finished.run / "rounds.jsonl").read_bytes()
    done = subprocess.run(finished.server_command(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "nothing is left to do" in done.stderr
    assert (finished.run / "rounds.jsonl").read_bytes() == before


@pytest.mark.long
def test_whatever_is_killed_the_federation_ends_with_the_same_model(finished: Federation, tmp_path: Path) -> None:
    with federation(tmp_path, ("east", "lost", "north", "west")) as made:
        revoke(made.kits, "lost")
        server = made.start_server()
        for site in ("east", "north", "west"):
            made.start_site(site)

        def app() -> int | None:
            holder = app_holder(made.run)
            return holder.pid if holder is not None and holder.alive else None

        killed = [
            (0, lambda: made.pid("superlink")),
            (1, lambda: made.pid("superexec")),
            (1, lambda: made.pid("proxy")),
            (2, app),
        ]
        wait_for(made.is_up, 120, "a server that waits for sites")
        for round_number, pid in killed:
            reached(made, round_number)
            kill(pid)
        wait_for(app, 90, "another server app")
        server.kill()
        server.wait()
        assert made.status()["status"] == "not running"
        server = made.start_server()
        wait_for(lambda: server.poll() is not None, 300, "the end of the federation")
        assert server.returncode == 0, made.log("server")
        assert [line["round"] for line in made.rounds()] == [1, 2, 3, 4]
        assert made.status()["status"] == "finished"
        verify(made.run / "audit.jsonl")
        same, other = (load_file(run / "model/model.safetensors") for run in (finished.run, made.run))
        assert same.keys() == other.keys()
        for name, values in same.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-5, atol=1e-7, err_msg=name)
        last = finished.rounds()[-1]["mean_dice"]
        assert made.rounds()[-1]["mean_dice"] == pytest.approx(last, abs=1e-6)


def reached(made: Federation, round_number: int) -> None:
    """Waits until so many rounds are done."""
    wait_for(lambda: len(made.rounds()) >= round_number, 200, f"round {round_number}: {made.log('server')[-500:]}")


def kill(find: Callable[[], int | None]) -> None:
    wait_for(find, 90, "a process to kill")
    pid = find()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def test_a_revoked_site_is_shut_out_at_once_and_sigterm_ends_everything(tmp_path: Path) -> None:
    with federation(tmp_path, ("east", "north")) as made:
        server = made.start_server()
        wait_for(made.is_up, 120, "a server that waits for sites")
        made.start_site("east")
        wait_for(lambda: "east is connected" in made.log("server"), 120, "a site")
        revoke(made.kits, "east")
        wait_for(lambda: "east: its key is let in no more" in made.log("server"), 30, "the end of a site")
        wait_for(lambda: "401" in made.refused_requests(), 60, "a refusal of the revoked site")
        assert "east" not in json.loads((made.run / "nodes.json").read_text()).values()
        wait_for((made.run / "state.json").exists, 60, "a run that has begun")
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 130
        assert "interrupted" in made.log("server")
        assert processes_in(made.kits / "server") == []
        assert made.status()["status"] == "interrupted"


def test_a_stranger_writes_little_into_the_log(tmp_path: Path) -> None:
    issue(tmp_path)
    context = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    with proxy_alone(tmp_path, free_port()) as port:
        for path in ("/short", "/" + "x" * 6000, "/a%0a%1b[2J" + "\u20ac" * 300):
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)
            connection.putrequest("POST", urllib.parse.quote(path, safe="/%"))
            connection.endheaders()
            assert connection.getresponse().status == 403
            connection.close()
        log = tmp_path / "proxy/refused.log"
        # It writes a line after the answer.
        wait_for(lambda: log.read_bytes().count(b"\n") >= 3, 20, "three lines")
        lines = log.read_bytes().split(b"\n")
    assert b'403 "POST /short"' in lines[0]
    assert len(lines) == 4
    assert all(len(line) < 800 and line.decode().isprintable() for line in lines)


class Hesitating(BaseHTTPRequestHandler):
    """Answers nothing before it may."""

    protocol_version = "HTTP/1.1"
    may = threading.Event()
    asked = threading.Semaphore(0)

    def do_POST(self) -> None:
        Hesitating.asked.release()
        Hesitating.may.wait(60)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_one_site_has_no_more_than_some_requests_at_a_time(tmp_path: Path) -> None:
    issue(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    context = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hesitating) as superlink:
        superlink.socket = tls.wrap_socket(superlink.socket, server_side=True)
        threading.Thread(target=superlink.serve_forever, daemon=True).start()
        with proxy_alone(tmp_path, superlink.server_port) as port, ExitStack() as stack:

            def begin(key: str) -> http.client.HTTPSConnection:
                made = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
                stack.callback(made.close)
                made.request("POST", "/v1/fleet/pull-object", b"", {"flwr-public-key": key})
                return made

            east, north = (b64encode(public_key_to_bytes(generate_key_pairs()[1])).decode() for _ in range(2))
            assert len(east) > 255
            first = [begin(east) for _ in range(MOST_REQUESTS)]
            assert all(Hesitating.asked.acquire(timeout=30) for _ in first)
            assert begin(east).getresponse().status == 503
            other = begin(north)
            assert Hesitating.asked.acquire(timeout=30)
            Hesitating.may.set()
            assert {connection.getresponse().status for connection in [*first, other]} == {200}
        superlink.shutdown()
