"""The largest patch that a memory budget holds."""

from __future__ import annotations

import math

import pytest

from common.config.federation import FederationConfig
from common.errors import ConfigError
from common.planning.memory_budget import step_gb
from common.planning.planner import make_plan
from common.planning.resolve import plan_from_config, resolve_plan
from tests.common.planning.test_fingerprint import describe

SCANS = describe([(300, 280, 160)], [(0.8, 0.8, 1.5)])


def federation(gb: float | None, batch_size: int = 2, **model: object) -> FederationConfig:
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
