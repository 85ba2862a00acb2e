"""A hospital's fingerprint: made only where it is asked for, by its own terms, and in plain words."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from client.cli import main
from client.consent.decisions import DecisionBook
from client.consent.fingerprint_terms import FINGERPRINT_MEANINGS
from client.consent.sent_summary import departures, summary
from client.consent.site_config import SiteConfig, load_site_config
from client.site.earlier_fingerprints import RECORD_FILE, lock_record
from client.site.fingerprint import in_words, make_fingerprint
from client.site.signing_request import make_request
from client.state_folder import APPROVALS_FILE, AUDIT_FILE, default_consent
from common.audit import read_entries
from common.certificates import CertificateError, load_key
from common.config.federation import FederationConfig
from common.errors import ConfigError, DataError
from common.imaging.datasets.dataset import find_dataset
from common.imaging.phantoms.dataset import write_phantom_dataset
from common.planning.fingerprint_file import FingerprintFile, read_fingerprint
from common.planning.shared_fingerprint import SharedFingerprint

VALUES: dict[str, object] = {
    "name": "balls",
    "rounds": 1,
    "strategy": {"min_sites": 1},
    "network": {"address": "fl.example.org", "sites": ["north"]},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_phantom_dataset(tmp_path / "data", (6,), 0, (16, 16, 16))
    make_request("north", tmp_path / "key")
    return tmp_path / "data"


def federation(data: Path, **values: object) -> FederationConfig:
    declared = find_dataset(data)
    return FederationConfig.model_validate(
        VALUES | {"labels": declared.labels, "channels": list(declared.channels)} | values
    )


def test_every_field_is_explained_to_the_hospital() -> None:
    assert set(FINGERPRINT_MEANINGS) == set(SharedFingerprint.model_fields)
    assert all(len(meaning) > 10 for meaning in FINGERPRINT_MEANINGS.values())


def test_it_is_signed_by_the_site_and_says_what_it_shares(data: Path, tmp_path: Path) -> None:
    config = federation(data)
    made = make_fingerprint(config, "north", data, tmp_path / "key", SiteConfig(minimum_cell=3)).file
    assert made.is_signed_by(load_key(tmp_path / "key/site.key").public_key())
    make_request("other", tmp_path / "other")
    assert not made.is_signed_by(load_key(tmp_path / "other/site.key").public_key())
    assert abs(datetime.now(UTC) - datetime.fromisoformat(made.made_at)) < timedelta(minutes=10)
    dated = made.model_copy(update={"made_at": "2030-01-01T00:00:00+00:00"})
    assert not dated.is_signed_by(load_key(tmp_path / "key/site.key").public_key())
    with pytest.raises(ValidationError, match="must be a time in UTC with whole seconds"):
        FingerprintFile.model_validate(made.model_dump() | {"made_at": "2026-11-29T12:00:00+01:00"})
    assert not made.model_copy(update={"site": "south"}).is_signed_by(load_key(tmp_path / "key/site.key").public_key())
    lines = list(in_words(made))
    assert lines[0] == "6 labelled cases; a cell of fewer than 3 patients is not shown."
    assert len(lines) == 1 + 6 + len(config.labels or ())
    assert all("phantom" not in line for line in lines)


def test_it_is_noted_in_the_audit_log_before_it_is_there(data: Path, tmp_path: Path) -> None:
    config = federation(data)
    (tmp_path / "federation.yaml").write_text(config.resolved())
    words = ["fingerprint", "--name", "north", "--federation", str(tmp_path / "federation.yaml"), "--data", str(data)]
    words += ["--key", str(tmp_path / "key"), "--out", str(tmp_path / "north.json"), "--state", str(tmp_path / "state")]
    with pytest.raises(SystemExit):
        main(words)
    words.append("--no-site")
    assert main(words) != 0 and not (tmp_path / "north.json").exists(), "there is no such folder of state"
    (tmp_path / "state").mkdir()
    assert main(words) == 0
    assert read_fingerprint(tmp_path / "north.json").site == "north"
    left = departures(read_entries(tmp_path / "state" / AUDIT_FILE))
    assert summary(left)["total"]["kinds"] == {"fingerprints": 1}
    assert left[0].bytes == (tmp_path / "north.json").stat().st_size


@pytest.mark.parametrize(("stop", "reason"), [("pause", "paused"), ("withdraw", "withdrawn")])
def test_a_site_that_is_stopped_shares_none(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stop: str,
    reason: str,
) -> None:
    monkeypatch.setenv("FEDVOX_LEDGER", str(tmp_path / "hospital/ledger.jsonl"))
    book = DecisionBook(tmp_path / "state", default_consent())
    getattr(book, stop)("Dr. Ada")
    words = command(data, tmp_path, "--state", str(tmp_path / "state"))
    assert main(words) == 2
    assert f"{reason} by Dr. Ada" in capsys.readouterr().err and not (tmp_path / "north.json").exists()
    if stop == "pause":
        book.resume("Dr. Ada")
        assert main(words) == 0


@pytest.mark.parametrize("stop", ["pause", "withdraw"])
def test_a_stop_while_it_is_made_counts_and_so_does_one_that_an_older_copy_lacks(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    monkeypatch.setenv("FEDVOX_LEDGER", str(tmp_path / "hospital/ledger.jsonl"))
    state = tmp_path / "state"
    book = DecisionBook(state, default_consent())
    book.resume("Dr. Ada")
    older = (state / APPROVALS_FILE).read_bytes()

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            if text.startswith("case 1 of 6"):
                getattr(book, stop)("Dr. Ada")
            return super().write(text)

    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Terminal())
        assert main(command(data, tmp_path, "--state", str(state))) == 2
    assert not (tmp_path / "north.json").exists() and not (tmp_path / "key" / RECORD_FILE).exists()
    (state / APPROVALS_FILE).write_bytes(older)
    assert main(command(data, tmp_path, "--state", str(state))) == 2
    assert f"is older than the {stop.replace('draw', 'drawal')} in audit.jsonl" in capsys.readouterr().err


def test_two_are_not_made_at_once_with_one_key(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(data, tmp_path)
    with lock_record(tmp_path / "key"):
        assert main(words) == 2
    assert "another fingerprint is being made with this key" in capsys.readouterr().err
    assert not (tmp_path / "north.json").exists() and main(words) == 0


def command(data: Path, folder: Path, *more: str) -> list[str]:
    (folder / "federation.yaml").write_text(federation(data).resolved())
    words = ["fingerprint", "--name", "north", "--federation", str(folder / "federation.yaml"), "--data", str(data)]
    return [*words, "--key", str(folder / "key"), "--out", str(folder / "north.json"), "--no-site", *more]


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        ({"paused": True}, "paused in the site file; set paused: false to go on"),
        ({"privacy": {"required": True}}, r"the site file requires differential privacy \(privacy\.required\)"),
        ({"limits": {"federations": ["liver"]}}, "outside the site file's limits: federation 'balls' is not among"),
        ({"limits": {"labels": ["tumour"]}}, r"is not among limits\.labels"),
    ],
)
def test_nothing_is_made_against_the_hospitals_own_rules(
    data: Path, tmp_path: Path, site: dict[str, object], reason: str
) -> None:
    (tmp_path / "federation.yaml").write_text(federation(data).resolved())
    (tmp_path / "site.yaml").write_text(json.dumps(site))
    with pytest.raises(ConfigError, match=f"federation balls: gets no fingerprint: .*{reason}"):
        make_fingerprint(federation(data), "north", data, tmp_path / "key", load_site_config(tmp_path / "site.yaml"))
    words = ["fingerprint", "--name", "north", "--federation", str(tmp_path / "federation.yaml"), "--data", str(data)]
    words += ["--key", str(tmp_path / "key"), "--out", str(tmp_path / "north.json")]
    assert main([*words, "--site", str(tmp_path / "site.yaml")]) == 2
    assert not (tmp_path / "north.json").exists()


def test_nothing_is_made_that_nobody_needs_or_may_have(data: Path, tmp_path: Path) -> None:
    def make(config: FederationConfig, site: str = "north", key: str = "key", minimum_cell: int = 5) -> None:
        make_fingerprint(config, site, data, tmp_path / key, SiteConfig(minimum_cell=minimum_cell))

    fixed = {"preprocessing": {"spacing": "keep"}, "model": {"patch_size": [16, 16, 16]}}
    with pytest.raises(ConfigError, match="leaves nothing auto and needs no fingerprint; share none"):
        make(federation(data, **fixed))
    with pytest.raises(ConfigError, match="with privacy it cannot be auto"):
        make(federation(data, privacy={"epsilon": 4}))
    with pytest.raises(ConfigError, match=r"--name west: is no site of the federation \(network\.sites: north\)"):
        make(federation(data), "west")
    with pytest.raises(CertificateError, match="copy the key that fedvox-client request made"):
        make(federation(data), key="none")
    with pytest.raises(ConfigError, match="6 patients with label maps are fewer than 7, so nothing may be shared"):
        make(federation(data), minimum_cell=7)
    with pytest.raises(DataError):
        make(federation(data, channels=["T1", "T2"]))
