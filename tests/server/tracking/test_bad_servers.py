"""Tracking servers that are down, slow, full or none: the run does not notice, and what was missed is sent later."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest

from common.errors import RESTART_CANNOT_HELP, FedvoxError, OutputError
from common.system.supervisor import free_port
from server.cli import main
from server.progress.events import Event, Notice, RunStarted
from server.tracking.follow import Patience, followed, track
from server.tracking.mlflow_client import MlflowError
from server.tracking.settings import MlflowServer, TrackingSettings
from tests.e2e.commands import call
from tests.mlflow_server import Answer, FakeServer
from tests.server.tracking.growing_run import SITES, GrowingRun

QUICK = Patience(look=0.02, longest_pause=0.02, call=0.3, end=0.1, upload=20.0)


class MiniMlflow:
    """As much of MLflow as we call, for one run; fails while ``failure`` is set."""

    def __init__(self) -> None:
        self.failure: Answer | None = None
        self.failed, self.tracked = threading.Event(), threading.Event()
        self.rounds: Counter[int] = Counter()
        self.files: dict[str, bytes] = {}
        self.status = ""
        self.run: dict[str, object] | None = None

    def __call__(self, method: str, path: str, content: bytes) -> Answer:
        if self.failure is not None:
            self.failed.set()
            return self.failure
        name = path.split("?")[0].removeprefix("/api/2.0/mlflow/")
        if method == "PUT":
            self.files[path.rpartition("/")[2]] = content
            return 200, b"{}"
        values = json.loads(content or b"{}")
        answer: dict[str, object] = {}
        match name:
            case "experiments/get-by-name":
                answer = {"experiment": {"experiment_id": "1"}}
            case "runs/search":
                answer = {} if self.run is None else {"runs": [self.run]}
            case "runs/create":
                self.tracked.set()
                self.run = {"info": {"run_id": "r", "artifact_uri": "mlflow-artifacts:/1/r/artifacts"}}
                answer = {"run": self.run}
            case "runs/log-batch":
                self.rounds.update(item["step"] for item in values.get("metrics", ()) if item["key"] == "round")
                if self.run is not None and self.rounds:
                    self.run["data"] = {"metrics": [{"key": "round", "step": max(self.rounds)}]}
            case "runs/update":
                self.status = values["status"]
        return 200, json.dumps(answer).encode()


def follow(run: GrowingRun, url: str, told: list[Event], then: object = None) -> None:
    """A federation whose rounds do not wait for anything."""
    with followed(run.path, TrackingSettings(MlflowServer(url)), told.append, QUICK) as emit:
        run.begin()
        emit(RunStarted("hippocampus", 3, SITES))
        run.commit(1)
        if callable(then):
            then()
        for number in (2, 3, 4):
            run.commit(number)
        run.end()
        emit(Notice("done"))


def texts(told: list[Event]) -> list[str]:
    return [event.text for event in told if isinstance(event, Notice)]


def test_a_start_that_is_refused_sends_nothing_of_the_run_that_is_there(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    with FakeServer(MiniMlflow()) as server:
        settings = TrackingSettings(MlflowServer(server.url))
        with pytest.raises(OutputError), followed(run.path, settings, print, QUICK):
            raise OutputError("exists already")
    assert server.seen == []


def test_a_server_that_is_down_is_told_once_and_gets_everything_later(tmp_path: Path) -> None:
    run, told = GrowingRun(tmp_path / "run"), list[Event]()
    port = free_port()
    follow(run, f"http://127.0.0.1:{port}", told)
    down, left = [text for text in texts(told) if text != "done"]
    assert f"mlflow: http://127.0.0.1:{port} cannot be reached" in down
    assert "the run goes on" in down
    assert f"to send it later: fedvox-server track {run.path}" in left
    fake = MiniMlflow()
    with FakeServer(fake) as server:
        track(run.path, TrackingSettings(MlflowServer(server.url)))
    assert fake.rounds == {1: 1, 2: 1, 3: 1, 4: 1}
    assert fake.status == "FINISHED"
    assert fake.files["weights.safetensors"] == (run.path / "model" / "weights.safetensors").read_bytes()


def test_a_server_that_hangs_holds_nothing_up(tmp_path: Path) -> None:
    run, told = GrowingRun(tmp_path / "run"), list[Event]()
    asked, over = threading.Event(), threading.Event()

    def hang(method: str, path: str, content: bytes) -> Answer:
        asked.set()
        over.wait(60)
        return 200, b"{}"

    with FakeServer(hang) as server:
        # All rounds pass while the first request is still unanswered; ``over`` is set only afterwards.
        follow(run, server.url, told, then=lambda: asked.wait(60))
        over.set()
    assert any("does not answer within 0.3 s" in text for text in texts(told))
    assert any("not everything was sent" in text for text in texts(told))


@pytest.mark.parametrize(
    "failure",
    [
        (500, b'{"error_code": "INTERNAL_ERROR", "message": "disk \\u001b[31mfull"}'),
        (507, b"<h1>Insufficient Storage</h1>"),
        (413, b""),
        (429, b""),
    ],
)
def test_a_full_or_failing_server_gets_everything_once_it_works_again(tmp_path: Path, failure: Answer) -> None:
    run, told, fake = GrowingRun(tmp_path / "run"), list[Event](), MiniMlflow()
    fake.failure = failure

    def recover() -> None:
        assert fake.failed.wait(60)
        fake.failure = None

    with FakeServer(fake) as server:
        follow(run, server.url, told, recover)
    assert fake.rounds == {1: 1, 2: 1, 3: 1, 4: 1}
    assert fake.status == "FINISHED"
    failed, again = [text for text in texts(told) if text != "done"]
    assert f"(HTTP {failure[0]}" in failed
    assert "\x1b" not in failed
    assert "works again" in again


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, b"<html>not here</html>"), "is no MLflow server (HTTP 404)"),
        ((302, b""), "is no MLflow server (HTTP 302)"),
        ((200, b"<html>welcome</html>"), "is no MLflow server"),
        ((200, b"[" * 100_000), "is no MLflow server"),
        ((200, b'{"experiment": 5}'), "another form than MLflow"),
        ((200, b'{"runs": "none"}'), "another form than MLflow"),
        ((200, b'{"a": "' + bytes(2**23) + b'"}'), "an answer that does not end"),
        ((401, b"no"), "lets nobody in with this user and password"),
    ],
)
def test_what_is_no_mlflow_server_is_named(tmp_path: Path, answer: Answer, words: str) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    with FakeServer(lambda *_: answer) as server, pytest.raises(MlflowError) as refused:
        track(run.path, TrackingSettings(MlflowServer(server.url)))
    assert words in str(refused.value)


def test_a_redirect_takes_neither_run_nor_password_elsewhere(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    with (
        FakeServer(MiniMlflow()) as elsewhere,
        FakeServer(lambda *_: (307, b""), Location=f"{elsewhere.url}/api") as server,
        pytest.raises(MlflowError, match=r"is no MLflow server \(HTTP 307\)"),
    ):
        track(run.path, TrackingSettings(MlflowServer(server.url, "kathe", "s3cret")))
    assert len(server.seen) == 1
    assert elsewhere.seen == []


@pytest.mark.parametrize("name", ["rounds.jsonl", "summary.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    file = run.path / name
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with FakeServer(MiniMlflow()) as server:
        done = call(main, "track", run.path, "--mlflow", server.url)
    assert done.returncode == RESTART_CANNOT_HELP
    assert f"{name}: was changed or cut" in done.stderr


def test_what_speaks_no_http_is_named(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)
                connection.recv(4096)

        threading.Thread(target=greet, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(MlflowError, match="cannot be spoken with"):
            track(run.path, TrackingSettings(MlflowServer(url)))


def test_a_server_without_files_of_its_own_gets_the_metrics(tmp_path: Path) -> None:
    run, fake = GrowingRun(tmp_path / "run").whole(), MiniMlflow()
    fake.run = {"info": {"run_id": "r", "artifact_uri": "s3://bucket/1/r"}}
    with FakeServer(fake) as server, pytest.raises(FedvoxError, match="start it with --serve-artifacts"):
        track(run.path, TrackingSettings(MlflowServer(server.url)))
    assert fake.rounds == {1: 1, 2: 1, 3: 1, 4: 1}
    assert fake.status == "FINISHED"


def test_the_password_reaches_the_server_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, told, fake = GrowingRun(tmp_path / "run"), list[Event](), MiniMlflow()
    fake.failure = (500, b'{"error_code": "INTERNAL_ERROR", "message": "Basic a2F0aGU6czNjcmV0cDQkJA== s3cretp4$$"}')
    settings = tmp_path / "tracking.yaml"
    with FakeServer(fake) as server, caplog.at_level(logging.DEBUG):
        address = server.url.replace("://", "://kathe:s3cretp4%24%24@")
        settings.write_text(f"mlflow: {address}\n", encoding="utf-8")
        follow_failing = call(main, "track", run.whole().path, "--tracking", settings)
        typed = call(main, "track", run.path, "--mlflow", address)
        misspelt = call(main, "track", run.path, "--mlfow", address)
        fake.failure = None
        assert call(main, "track", run.path, "--tracking", settings).returncode == 0
    assert server.headers[-1]["Authorization"] == "Basic a2F0aGU6czNjcmV0cDQkJA=="
    assert [follow_failing.returncode, typed.returncode, misspelt.returncode] == [1, 1, 2]
    shown = [done.stdout + done.stderr for done in (follow_failing, typed, misspelt)]
    kept = [path.read_bytes().decode(errors="replace") for path in run.path.rglob("*") if path.is_file()]
    for text in (*shown, *kept, caplog.text, *texts(told)):
        assert "s3cretp4" not in text
        assert "a2F0aGU6" not in text


def test_a_token_that_no_header_can_hold_is_not_repeated(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    for token in ("tok3n\r\nX: y", "tök3n"):
        done = call(main, "track", run.path, "--mlflow", "http://127.0.0.1:9", MLFLOW_TRACKING_TOKEN=token)
        assert done.returncode in (1, 2)
        assert "k3n" not in done.stderr


def test_two_trackers_of_one_run(tmp_path: Path) -> None:
    run, told, fake = GrowingRun(tmp_path / "run"), list[Event](), MiniMlflow()
    with FakeServer(fake) as server:
        settings = TrackingSettings(MlflowServer(server.url))

        def second() -> None:
            assert fake.tracked.wait(60)
            with pytest.raises(FedvoxError, match="is tracked by another process already"):
                track(run.path, settings)

        follow(run, server.url, told, second)
    assert fake.rounds == {1: 1, 2: 1, 3: 1, 4: 1}


def test_a_run_that_never_begins_is_not_tracked(tmp_path: Path) -> None:
    with (
        FakeServer(MiniMlflow()) as server,
        followed(tmp_path / "none", TrackingSettings(MlflowServer(server.url)), print, QUICK),
    ):
        pass
    assert server.seen == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["none", "empty", "unbegun"])
def test_what_is_no_run_cannot_be_sent(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    if kind != "none":
        folder.mkdir()
    if kind == "unbegun":
        (folder / "federation.yaml").write_text("name: x\n", encoding="utf-8")
    done = call(main, "track", folder, "--mlflow", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "has not begun" in done.stderr if kind == "unbegun" else "is not a run folder" in done.stderr
