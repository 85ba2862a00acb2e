"""What the report says of a private run, and that it says nothing of one that is not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.planning.resolve import with_privacy
from common.privacy.calibration import noise_for
from server.privacy.forecast import privacy_summary
from server.reporting.privacy_section import _dice_by_epsilon, privacy_section
from server.reporting.report import write_report
from server.run_store.record_reader import read_run
from tests import tiny
from tests.server.reporting.test_report import Page
from tests.server.run_folder import SITES, write_json_lines, write_run_folder

PRIVACY = {"mode": "patient", "epsilon": 8.0, "delta": 1e-5, "max_grad_norm": 0.5, "sample_rate": 0.25}
NOISE = {"training_noise": 1.234, "validation_noise": 5.678}


def private_run(folder: Path, noise: dict[str, Any] | None = NOISE, **privacy: object) -> Path:
    """Ten rounds at the end of which the sites have spent 0.5, 0.6, 0.7 times the round's number."""
    run = write_run_folder(folder / "run")
    configuration = yaml.safe_load((run / "federation.yaml").read_text(encoding="utf-8"))
    (run / "federation.yaml").write_text(
        yaml.safe_dump(configuration | {"privacy": PRIVACY | privacy}), encoding="utf-8"
    )
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        for index, part in enumerate(line["sites"].values()):
            part["epsilon"] = (0.5 + 0.1 * index) * line["round"]
    write_json_lines(run / "rounds.jsonl", lines)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    (run / "summary.json").write_text(json.dumps(summary | {"privacy": noise}), encoding="utf-8")
    return run


def test_the_section_says_what_was_promised_and_spent(tmp_path: Path) -> None:
    page = Page(write_report(private_run(tmp_path)))
    for words in (
        "each patient of each site",
        "epsilon 8 at delta 1e-05, for all 10 rounds",
        "epsilon 7.700 (the site that spent the most)",
        "with probability 0.25; their gradient is clipped to a norm of 0.5",
        "1.234 (standard deviation of the noise on the sum of gradients in a step",
        "noise multiplier 5.678 (standard deviation of the noise on the sum of scores",
        "= 2.98e+03 times",
        "Not covered: that a site takes part",
        "This report itself is not private",
    ):
        assert words in page.text
    assert page.row("raw-low")[-1] == "5.500"
    assert page.open == []


def test_a_large_delta_is_warned_of(tmp_path: Path) -> None:
    assert "is more than 1/" in Page(write_report(private_run(tmp_path, delta=0.5))).text


def test_dice_stands_against_what_its_model_had_cost(tmp_path: Path) -> None:
    run = read_run(private_run(tmp_path))
    *sites, mean = _dice_by_epsilon(run)
    for index, (curve, name) in enumerate(zip(sites, SITES, strict=True)):
        assert curve.x == pytest.approx([(0.5 + 0.1 * index) * number for number in range(11)])
        assert curve.y == [line.sites[name].mean_dice for line in run.rounds]
    assert mean.x == pytest.approx([0.7 * number for number in range(11)])
    assert mean.y == [line.mean_dice for line in run.rounds]


def test_a_site_that_was_away_leaves_a_gap(tmp_path: Path) -> None:
    folder = private_run(tmp_path)
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    del lines[3]["sites"]["uint8"]
    write_json_lines(folder / "rounds.jsonl", lines)
    run = read_run(folder)
    curve = _dice_by_epsilon(run)[list(SITES).index("uint8")]
    assert math.isnan(curve.x[4])
    assert math.isnan(curve.y[3])
    assert not math.isnan(curve.x[3])
    assert Page(write_report(folder)).open == []


def test_scores_that_are_not_sent(tmp_path: Path) -> None:
    folder = private_run(tmp_path, validation="off")
    assert "none leave the sites" in Page(write_report(folder)).text


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = private_run(tmp_path, noise=None)
    (folder / "rounds.jsonl").unlink()
    section = privacy_section(read_run(folder))
    assert section is not None
    assert section["curves"] is None
    text = Page(write_report(folder)).text
    assert "nothing yet" in text
    assert "not known yet" in text


def test_a_run_without_privacy_has_no_such_section(tmp_path: Path) -> None:
    page = Page(write_report(write_run_folder(tmp_path / "run")))
    assert "epsilon" not in page.text
    assert "Privacy" not in page.text


def test_the_summary_holds_the_noise_of_the_plan() -> None:
    private = tiny.federation(rounds=5, training={"local_steps": 2}, privacy={"epsilon": 8, "sample_rate": 1.0})
    assert privacy_summary(private, with_privacy(tiny.plan(), private)) == {
        "training_noise": noise_for(8, 1e-5, 1.0, 10),
        "validation_noise": noise_for(8, 1e-5, 1.0, 6),
    }
    assert privacy_summary(tiny.federation(), tiny.plan()) is None
