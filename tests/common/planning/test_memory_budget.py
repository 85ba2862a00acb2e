"""The largest patch that a memory budget holds, and then the largest batch."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from common.config.federation import FederationConfig
from common.errors import ConfigError
from common.plan.plan import Plan
from common.planning.fingerprint import Fingerprint
from common.planning.memory_budget import step_gb
from common.planning.planner import make_plan
from common.planning.resolve import plan_from_config, resolve_plan
from tests.common.planning.test_fingerprint import describe

SCANS = describe([(300, 280, 160)], [(0.8, 0.8, 1.5)])


def federation(gb: float | None, batch_size: int | str = 2, **model: object) -> FederationConfig:
    return FederationConfig.model_validate(
        {
            "name": "liver",
            "rounds": 1,
            "labels": {1: "liver"},
            "channels": ["CT"],
            "preprocessing": {"spacing": [0.8, 0.8, 1.5]},
            "model": model,
            "training": {"memory_gb": gb, "batch_size": batch_size},
        }
    )


@pytest.mark.parametrize("gb", [1.0, 4.0, 16.0])
def test_the_patch_is_the_largest_that_fits(gb: float) -> None:
    config = federation(gb)
    plan = resolve_plan(config, SCANS, ("CT",), {1: "liver"})
    assert step_gb(plan, config) <= gb
    voxels = math.prod(plan.patch_size)
    for more in range(voxels + 1, int(1.3 * voxels), voxels // 40):
        larger = make_plan(SCANS, ("CT",), {1: "liver"}, network=config.model, largest_patch=more)
        assert larger.patch_size == plan.patch_size or step_gb(larger, config) > gb


def test_more_memory_or_fewer_patches_of_a_step_allow_larger_ones() -> None:
    def voxels(config: FederationConfig) -> int:
        return math.prod(resolve_plan(config, SCANS, ("CT",), {1: "liver"}).patch_size)

    assert voxels(federation(1.0)) < voxels(federation(2.0)) < voxels(federation(2.0, batch_size=1))
    assert voxels(federation(2.0, residual=True, channels=(32, 64, 128))) < voxels(federation(2.0))
    assert voxels(federation(None)) == voxels(federation(None, batch_size=64)) <= 96**3
    # Memory for more than a whole volume changes nothing: the patch holds the median volume.
    assert voxels(federation(900.0)) == voxels(federation(500.0)) >= 300 * 280 * 160


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.memory_gb: a step with patch_size \[96, 96, 96\].* lower them"):
        plan_from_config(federation(0.5, patch_size=(96, 96, 96)))
    assert plan_from_config(federation(50, patch_size=(96, 96, 96))).patch_size == (96, 96, 96)
    with pytest.raises(ConfigError, match=r"and batch_size 4096 takes about .* GB, more than 0\.1"):
        resolve_plan(federation(0.1, batch_size=4096), SCANS, ("CT",), {1: "liver"})
    # A few dozen voxels would fit.
    with pytest.raises(ConfigError, match=r"training\.memory_gb: a step with patch_size \[20, 20, 10\]"):
        resolve_plan(federation(0.3, 64, channels=(320, 320)), SCANS, ("CT",), {1: "liver"})


MANY = describe([(300, 280, 160)] * 200, [(0.8, 0.8, 1.5)] * 200)


def auto(gb: float, scans: Fingerprint = MANY, **model: object) -> tuple[FederationConfig, Plan]:
    config = federation(gb, "auto", **model)
    return config, resolve_plan(config, scans, ("CT",), {1: "liver"})


@pytest.mark.parametrize("gb", [2.0, 8.0, 60.0])
def test_a_batch_fills_what_the_largest_patch_leaves(gb: float) -> None:
    config, plan = auto(gb)
    assert plan.patch_size == resolve_plan(federation(gb, 2), MANY, ("CT",), {1: "liver"}).patch_size
    assert plan.batch_size is not None and step_gb(plan, config) <= gb
    assert step_gb(plan.model_copy(update={"batch_size": plan.batch_size + 1}), config) > gb


def test_the_patch_grows_first_and_the_batch_once_it_holds_the_volume() -> None:
    assert [auto(gb)[1].batch_size for gb in (2.0, 8.0)] == [2, 2]
    whole, more = auto(120.0)[1], auto(240.0)[1]
    assert more.patch_size == whole.patch_size and math.prod(whole.patch_size) >= 300 * 280 * 160
    assert 2 < (whole.batch_size or 0) < (more.batch_size or 0)
    # A patch that is written leaves the rest to the batch.
    _, small = auto(8.0, patch_size=(64, 64, 64))
    assert (small.batch_size or 0) > 2 and small.patch_size == (64, 64, 64)


def test_a_batch_is_a_twentieth_of_the_dataset_at_most_and_two_patches_at_least() -> None:
    twenty = describe([(64, 64, 64)] * 100, [(0.8, 0.8, 1.5)] * 100)
    assert auto(900.0, twenty, patch_size=(64, 64, 64))[1].batch_size == 5
    assert auto(900.0, SCANS, patch_size=(320, 320, 160))[1].batch_size == 2
    with pytest.raises(ConfigError, match=r"and batch_size 2 takes about .* GB, more than 0\.5"):
        auto(0.5, patch_size=(96, 96, 96))


def test_the_chosen_batch_is_trained_with() -> None:
    config, plan = auto(8.0, patch_size=(64, 64, 64))
    assert config.training.patches_per_step(plan) == plan.batch_size
    assert federation(8.0, 3).training.patches_per_step(plan) == 3


def test_an_open_batch_needs_a_budget_and_no_privacy() -> None:
    with pytest.raises(ValidationError, match=r"batch_size: auto fills training\.memory_gb, which is missing"):
        federation(None, "auto")
    content = federation(2.0, "auto").model_dump() | {"privacy": {"epsilon": 3}}
    content["training"]["validate_local"] = 0
    with pytest.raises(ValidationError, match=r"training\.batch_size must be a number with privacy"):
        FederationConfig.model_validate(content)
    with pytest.raises(ConfigError, match=r"training\.batch_size: write a number; auto needs the fingerprints"):
        plan_from_config(federation(2.0, "auto", patch_size=(64, 64, 64)))
