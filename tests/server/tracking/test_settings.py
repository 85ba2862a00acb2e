from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from server.cli import main
from server.tracking.settings import MlflowServer, TrackingSettings, parse_server, read_tracking
from tests import tiny
from tests.e2e.commands import call


def read(tmp_path: Path, text: str) -> TrackingSettings:
    file = tmp_path / "tracking.yaml"
    file.write_text(text, encoding="utf-8")
    return read_tracking(file)


def test_user_and_password_come_from_the_address_or_from_mlflows_own_variables() -> None:
    named = parse_server("https://kathe:p%40ss%2Fw@mlflow.example.org:5000/base/", "mlflow", {})
    assert named == MlflowServer("https://mlflow.example.org:5000/base", "kathe", "p@ss/w")
    variables = {"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p", "MLFLOW_TRACKING_TOKEN": "t"}
    assert parse_server("http://[::1]:5000", "mlflow", variables) == MlflowServer("http://[::1]:5000", "u", "p", "t")
    assert parse_server("http://kathe@localhost", "mlflow", variables) == MlflowServer("http://localhost", "kathe")


def test_no_secret_crosses_a_network_unencrypted() -> None:
    for address, variables in (
        ("http://u:s3cret@h:5000", {}),
        ("http://u:s3cret@127.0.0.1.evil.example", {}),
        ("http://h", {"MLFLOW_TRACKING_TOKEN": "s3cret"}),
        ("http://h", {"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "s3cret"}),
    ):
        with pytest.raises(ConfigError, match="--mlflow: would send password or token unencrypted") as refused:
            parse_server(address, "--mlflow", variables)
        assert "s3cret" not in str(refused.value)
    assert parse_server("http://h", "--mlflow", {}) == MlflowServer("http://h")


def test_a_server_does_not_show_its_secrets() -> None:
    assert "s3cret" not in repr(TrackingSettings(MlflowServer("http://h", "u", "s3cret", "s3cret")))


@pytest.mark.parametrize(
    "address",
    [
        "s3cret",
        "ftp://u:s3cret@h",
        "http://u:s3cret@",
        "http://u:s3cret@h:99999",
        "http://u:s3/cret@h",
        "http://u:5/s3cret@h",
        "http://u:s3#cret@h",
        "http://u:s3?cret@h",
        "http://u:s3 cret@h",
        "http://u:s3\x1bcret@h",
        "http://u:s3cret@[::1",
        "http://u:s3cret@h/" + "x" * 2000,
        "sqlite:///s3cret.db",
        17,
    ],
)
def test_an_address_that_cannot_be_used_is_refused_and_not_repeated(address: object) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_server(address, "--mlflow", {})
    assert "--mlflow: must be the address of an MLflow server" in str(refused.value)
    assert not {"s3", "cret", "17"} & set(str(refused.value).replace("/", " ").split())
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a mapping"),
        ("http://u:s3cret@h", "must be a mapping"),
        ("mlflow http://u:s3cret@h: x", "no other keys"),
        ("mlflow: {a: s3cret}", "must be the address"),
        ("mlflow: http://u:s3cret@h\nmlflow: http://h", "duplicate key"),
        ("{'http://u:s3cret@h': 1, 'http://u:s3cret@h': 2}", "duplicate key"),
        ("mlflow: 'http://u:s3cret@h", "not valid YAML"),
        ("tensorboard: s3cret", "must be true or false"),
        ("tensorboard: false", "names neither"),
        ("mlflow: http://h\nexperiment: ''", "experiment: must be a name"),
        ('mlflow: http://h\nexperiment: "a\\e[31m"', "experiment: must be a name"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_not_repeated(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    assert words in str(refused.value)
    assert str(tmp_path / "tracking.yaml") in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_refused_file_stops_before_the_run_begins(tmp_path: Path) -> None:
    out = tmp_path / "run"
    federation = tiny.write_federation(tmp_path)
    done = call(main, "simulate", federation, "--out", out, "--tracking", tmp_path / "none.yaml")
    assert done.returncode == 2
    assert "none.yaml: does not exist; write one" in done.stderr
    swept = ("--sweep", "rounds=1,2", "--tracking", tmp_path / "none.yaml")
    done = call(main, "simulate", federation, "--out", out, *swept)
    assert done.returncode == 2
    assert "with fedvox-server track" in done.stderr
    done = call(main, "track", out, "--tracking", tmp_path / "none.yaml", "--mlflow", "http://h")
    assert "--tracking: says where to send" in done.stderr
    assert not out.exists()
