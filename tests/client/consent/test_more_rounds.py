"""A person allows more rounds than were approved, and is told what that means."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.cli.entry import main
from common.audit import read_entries
from tests.client.consent.test_disclosure import write_kit


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_more_rounds_are_shown_logged_and_added_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit = tmp_path / "kit"
    write_kit(kit)
    said(capsys, "approve", "--kit", kit)
    allowed = said(capsys, "approve", "--kit", kit, "--more-rounds", 2, "--user", "Dr. B")
    assert "5 rounds in all: 0 of 5 trainings used, 2 of them allowed later." in allowed
    assert "6 rounds in all" in said(capsys, "approve", "--kit", kit, "--more-rounds", 1)
    assert "0 of 6 trainings used, 3 of them allowed later." in said(capsys, "review", "--kit", kit)
    entries = [entry for entry in read_entries(kit / "state" / "audit.jsonl") if entry.event == "more_rounds_allowed"]
    assert [entry.details["rounds"] for entry in entries] == [2, 1]
    assert entries[0].details["user"] == "Dr. B"


def test_under_privacy_the_cost_of_all_rounds_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit = tmp_path / "kit"
    write_kit(kit, privacy={"epsilon": 8, "sample_rate": 0.5})
    allowed = said(capsys, "approve", "--kit", kit, "--more-rounds", 3)
    [line] = [line for line in allowed.splitlines() if "costs a patient up to epsilon" in line]
    assert 8 < float(line.split("up to epsilon ")[1].split()[0]) < 16, line
    assert line.endswith("instead of 8.")


@pytest.mark.parametrize("rounds", ["0", "-1", "many", "1.5"])
def test_what_is_no_number_of_rounds_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rounds: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["approve", "--kit", str(tmp_path), f"--more-rounds={rounds}"])
    assert ended.value.code == 2
    assert "give a whole number from 1 on" in capsys.readouterr().err


def test_weaker_limits_are_named_when_a_person_approves_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit, site = tmp_path / "kit", tmp_path / "kit" / "state" / "site.yaml"
    write_kit(kit)
    site.parent.mkdir()
    site.write_text("limits: {max_rounds: 3}\n")
    approved = said(capsys, "approve", "--kit", kit)
    assert f"({site}): limits.max_rounds: 3\n" in approved and "are weaker" not in approved
    site.unlink()
    again = said(capsys, "approve", "--kit", kit)
    assert f"({site}): none\n" in again and "are weaker than at the last approval: limits.max_rounds" in again
