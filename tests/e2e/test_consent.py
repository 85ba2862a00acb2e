"""A hospital decides and looks back, on the command line as its engineer uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from client.cli import main
from client.consent.policy import Policy, PolicyError
from client.consent.site_config import SITE_FILE
from client.state_folder import default_consent
from common.audit import AuditLog, read_entries
from common.config.federation import FederationConfig
from common.protocol.messages import ErrorCode
from tests.client.consent.test_disclosure import write_kit
from tests.e2e.commands import call


def fedvox(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return call(main, *arguments, **environment)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    write_kit(tmp_path / "kit")
    return tmp_path / "kit"


@pytest.fixture
def federation(kit: Path) -> FederationConfig:
    return write_kit(kit)


def answer(kit: Path, federation: FederationConfig) -> ErrorCode | None:
    """What a task gets at the site now."""
    try:
        Policy(kit, kit / "state", default_consent()).check(federation.digest())
    except PolicyError as error:
        return error.code
    return None


def done(*arguments: object, **environment: str) -> str:
    process = fedvox(*arguments, **environment)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout


def refused(*arguments: object, status: int = 2) -> str:
    process = fedvox(*arguments)
    assert process.returncode == status
    assert "Traceback" not in process.stderr
    assert len(process.stderr.splitlines()) <= 2
    return process.stderr


def test_from_review_to_withdrawal(kit: Path, federation: FederationConfig) -> None:
    digest = federation.digest()
    shown = done("review", "--kit", kit, COLUMNS="70")
    assert "NONE: this federation does not use differential privacy" in shown
    assert f"fedvox-client approve --kit {kit} --digest {digest}" in shown
    assert max(len(line) for line in shown.splitlines() if digest not in line) <= 70
    assert answer(kit, federation) is ErrorCode.NOT_APPROVED

    assert digest in done("approve", "--kit", kit, "--digest", digest, "--user", "Dr. Ägypten")
    assert answer(kit, federation) is None
    assert "Approved by Dr. Ägypten" in done("review", "--kit", kit)
    content = json.loads(done("review", "--kit", kit, "--json"))
    assert content["site_decisions"]["approved"]["user"] == "Dr. Ägypten"
    assert content["sent_back"]["fields"]

    done("pause", "--kit", kit)
    assert answer(kit, federation) is ErrorCode.PAUSED
    done("resume", "--kit", kit)
    assert answer(kit, federation) is None
    done("withdraw", "--kit", kit, "--user", "Dr. B")
    assert answer(kit, federation) is ErrorCode.WITHDRAWN
    assert "Withdrawn by Dr. B" in done("review", "--kit", kit)

    entries = read_entries(kit / "state" / "audit.jsonl")
    assert [entry.event for entry in entries] == ["approved", "paused", "resumed", "withdrawn"]
    assert entries[0].details["digest"] == digest
    assert entries[0].details["user"] == "Dr. Ägypten"
    assert all(entry.details["account"] for entry in entries)


def test_in_processes_of_their_own(kit: Path, federation: FederationConfig) -> None:
    """The tests around this one call the same command in their own process."""
    command = [sys.executable, "-m", "client.cli"]
    for verb, code in (("approve", None), ("pause", ErrorCode.PAUSED)):
        process = subprocess.run([*command, verb, "--kit", kit], capture_output=True, text=True, timeout=120)
        assert (process.returncode, process.stderr) == (0, "")
        assert answer(kit, federation) is code
    process = subprocess.run([*command, "audit", "--kit", kit.parent], capture_output=True, text=True, timeout=120)
    assert process.returncode == 2 and "is not a kit" in process.stderr and process.stdout == ""


def test_the_account_cannot_be_made_up(kit: Path) -> None:
    done("approve", "--kit", kit, USER="someone", LOGNAME="someone", LNAME="someone", USERNAME="someone")
    approval = json.loads((kit / "state" / "approvals.json").read_text())["decisions"]["approvals"][0]
    assert "someone" not in (approval["user"], approval["account"])


def test_another_kit_than_the_reviewed_one_is_not_approved(kit: Path) -> None:
    before = write_kit(kit).digest()
    after = write_kit(kit, rounds=99)
    assert before in refused("approve", "--kit", kit, "--digest", before)
    assert answer(kit, after) is ErrorCode.NOT_APPROVED


def test_a_federation_outside_the_limits_cannot_be_approved(kit: Path, federation: FederationConfig) -> None:
    (kit / "state").mkdir()
    (kit / "state" / SITE_FILE).write_text("limits: {max_local_steps: 6}\n")
    assert "7 training steps" in refused("approve", "--kit", kit)
    assert "Outside your site's limits: 7 training steps" in done("review", "--kit", kit)
    assert answer(kit, federation) is ErrorCode.OUTSIDE_LIMITS


def test_a_site_file_in_the_kit_allows_nothing(kit: Path, federation: FederationConfig) -> None:
    (kit / SITE_FILE).write_text(
        "limits: {automatic_approval: true, federations: [tiny], max_rounds: 99, max_local_steps: 99}\n"
    )
    assert answer(kit, federation) is ErrorCode.NOT_APPROVED


@pytest.mark.parametrize("command", ["review", "approve", "pause", "resume", "withdraw", "audit"])
def test_a_folder_that_is_no_kit(tmp_path: Path, command: str) -> None:
    assert "is not a kit" in refused(command, "--kit", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_log_is_proven_and_damage_shows(kit: Path, tmp_path: Path) -> None:
    state = tmp_path / "elsewhere"
    done("approve", "--kit", kit, "--state", state)
    log = AuditLog(state / "audit.jsonl")
    for number in range(1, 4):
        details = {"kind": "train", "run": "r", "round": number, "bytes": 1000 * number, "sha256": "0" * 64}
        noted = log.append("sent", **details, tensors=[{"name": "update/00000"}], fields={}, epsilon=None).hash
    audit = ("audit", "--kit", kit, "--state", state)
    assert "The chain was not checked" in done(*audit)
    shown = done(*audit, "--verify", "--expect", noted)
    assert "WHAT LEFT THIS BUILDING" in shown
    assert "6,000" in shown
    assert "The chain is intact: 4 entries" in shown
    content = json.loads(done(*audit, "--verify", "--json"))
    assert content["verified"]["entries"] == 4
    assert content["total"]["bytes"] == 6000

    assert "no entry with the hash" in refused(*audit, "--verify", "--expect", "f" * 64, status=1)
    assert "--verify" in refused(*audit, "--expect", noted)
    whole = (state / "audit.jsonl").read_bytes()
    (state / "audit.jsonl").write_bytes(whole.replace(b'"bytes":2000', b'"bytes":2'))
    assert "line 3: was edited" in refused(*audit, "--verify", status=1)
    (state / "audit.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert "cut off" in refused(*audit, "--verify", status=1)


def test_a_log_that_was_replaced_as_a_whole_lacks_the_approval(kit: Path) -> None:
    done("approve", "--kit", kit)
    for file in (kit / "state").glob("audit.jsonl*"):
        file.unlink()
    AuditLog(kit / "state" / "audit.jsonl").append("sent", bytes=0)
    assert "lacks the approval" in refused("audit", "--kit", kit, "--verify", status=1)


@pytest.mark.parametrize("command", ["review", "approve", "pause", "resume", "withdraw", "audit"])
def test_help_shows_an_example(command: str) -> None:
    assert f"fedvox-client {command} --kit kit" in done(command, "--help")
