"""The real runner with real training on phantoms; as a program, ``python -m client.runner``, where that matters."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from client.runner.isolation import can_isolate
from common.config.kit import read_kit
from common.protocol.messages import Result, SiteInfo
from common.weights.store import FileStore
from tests.client.runner.site import PRIVACY, RunnerSite
from tests.kits import seal_kit


def started(folder: Path, steps: int = 2, more: str = "", program: bool = False) -> RunnerSite:
    site = RunnerSite(folder, steps, more)
    if program:
        site.start_program()
    else:
        site.start()
    return site


def test_it_says_who_it_is_trains_and_scores_and_sees_no_network(tmp_path: Path) -> None:
    site = started(tmp_path, program=True)
    try:
        site.wait_until("waiting")
        assert site.status["isolated"] is can_isolate()
        info = site.answer(site.give(site.hello()))
        assert isinstance(info, SiteInfo) and (info.train_examples, info.validation_examples) == (2, 1)
        trained = site.answer(site.give(site.task()))
        assert isinstance(trained, Result) and trained.update is not None and trained.steps == 2
        assert FileStore(site.shared.outbox).verified(trained.update).size == 4 * site.parameters
        scored = site.answer(site.give(site.task(10, train=False)))
        assert isinstance(scored, Result) and scored.update is None and 0 <= scored.mean_dice <= 1
        assert [entry.details["kind"] for entry in site.entries("sent")] == ["hello", "train", "evaluate"]
        if can_isolate():
            interfaces = Path(f"/proc/{site.status['pid']}/net/dev").read_text()
            assert [line.split(":")[0].strip() for line in interfaces.splitlines()[2:]] == ["lo"]
        assert site.terminate() < 2
    finally:
        site.kill()


def test_killed_in_training_a_private_round_is_trained_again_and_paid_once(tmp_path: Path) -> None:
    site = started(tmp_path, 150, PRIVACY)
    try:
        task = site.task()
        site.give(task)
        site.wait_for_step()
        site.kill()
        assert len(site.paid()) == 1
        site.start()
        site.wait_for(lambda: site.shared.work().step > 0, "training anew")
        assert len(site.paid()) == 1
        assert site.terminate() < 2, "also in training"
        assert not site.shared.replies()
    finally:
        site.kill()


def test_a_plan_with_less_noise_than_was_approved_is_refused(tmp_path: Path) -> None:
    site = RunnerSite(tmp_path, 2, PRIVACY)
    file = site.kit / "plan.json"
    content = json.loads(file.read_text())
    content["privacy"]["training"]["noise_multiplier"] /= 2
    file.write_text(json.dumps(content))
    seal_kit(site.kit, read_kit(site.kit))
    status, text = site.end()
    assert status == 2 and f"{file}: does not follow from federation.yaml" in text
    assert "more than the budget of 20" in text and "Traceback" not in text


def test_a_plan_that_does_not_follow_is_refused_without_privacy_too(tmp_path: Path) -> None:
    site = RunnerSite(tmp_path)
    file = site.kit / "plan.json"
    content = json.loads(file.read_text())
    content["patch_size"] = [8, 8, 8]
    file.write_text(json.dumps(content))
    seal_kit(site.kit, read_kit(site.kit))
    status, text = site.end()
    assert status == 2 and f"{file}: does not follow from federation.yaml" in text and "Traceback" not in text


def test_two_runners_on_one_folder_are_refused(tmp_path: Path) -> None:
    site = started(tmp_path)
    try:
        site.wait_until("waiting")
        status, text = site.end()
        assert status == 1 and f"{site.shared.path}: another runner works here" in text
        assert "Traceback" not in text
        assert isinstance(site.answer(site.give(site.hello())), SiteInfo), "the first one goes on"
    finally:
        site.kill()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    site = RunnerSite(tmp_path)
    (tmp_path / "file").touch()
    status, text = site.end(tmp_path / "file" / "shared")
    assert status == 1 and f"{tmp_path / 'file' / 'shared'}: cannot be made" in text and "Traceback" not in text


def test_data_that_cannot_be_used_are_told_until_they_are_put_right(tmp_path: Path) -> None:
    site = RunnerSite(tmp_path)
    aside = site.data.rename(tmp_path / "aside")
    site.start()
    try:
        site.wait_until("waiting")
        assert "the data cannot be used" in site.status["problem"]
        assert site.failure(site.give(site.hello())) == ("NO_DATA", "SiteDataError")
        aside.rename(site.data)
        assert isinstance(site.answer(site.give(site.hello())), SiteInfo)
        site.wait_for(lambda: site.status.get("problem") is None, "no problem any more")
    finally:
        site.kill()


def test_sigterm_while_data_are_prepared_ends_it(tmp_path: Path) -> None:
    site = started(tmp_path, program=True)
    try:
        site.wait_for(lambda: site.status.get("state") in ("preparing data", "waiting"), "its first sign")
        assert site.terminate() < 2
    finally:
        site.kill()


def test_a_kit_of_an_earlier_form_is_named(tmp_path: Path) -> None:
    site = RunnerSite(tmp_path)
    kit = site.kit / "kit.yaml"
    kit.write_text(json.dumps(json.loads(kit.read_text()) | {"format": 1}))
    status, text = site.end()
    assert status != 0 and str(site.kit) in text and "Traceback" not in text


def test_sigint_of_a_terminal_ends_it_too(tmp_path: Path) -> None:
    site = started(tmp_path, program=True)
    try:
        site.wait_until("waiting")
        assert site.process is not None
        site.process.send_signal(signal.SIGINT)
        site.process.wait(10)
        assert site.process.poll() == 0
    finally:
        site.kill()


def test_help_of_the_command_shows_an_example() -> None:
    for command in ("courier", "runner", "start", "preflight", "status", "health"):
        done = subprocess.run(
            [sys.executable, "-m", "client.cli", command, "--help"], capture_output=True, text=True, check=True
        )
        assert f"example:\n  fedvox-client {command}" in done.stdout
