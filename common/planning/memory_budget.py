"""The largest patch whose training step fits into a memory budget, and then the largest batch.

The order is nnU-Net's (Isensee et al. 2021): the patch grows first, with the smallest batch; what memory is left goes
to the batch, which covers at most a twentieth of the dataset's voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from common.config.federation import FederationConfig
from common.errors import ConfigError
from common.models.memory import training_bytes
from common.plan.base import LEAST_BATCH, MOST_PATCH_VOXELS, MOST_PATCHES
from common.plan.plan import Plan

WORKING = 3.0
"""Memory of a training step, as a multiple of what it keeps for the backward pass: 1.8 to 2.9 were measured on CPUs."""
SMALLEST_PATCH = 16**3
LARGEST_SHARE = 0.05
"""Share of all voxels of the dataset that an automatically chosen batch covers at most."""


def step_gb(plan: Plan, config: FederationConfig) -> float:
    """Return about how much memory a training step takes, in 10^9 bytes."""
    batch = 1 if config.privacy else config.training.patches_per_step(plan)
    return _batch_gb(plan, batch)


def _batch_gb(plan: Plan, batch: int) -> float:
    return WORKING * training_bytes(plan.model, plan.patch_size, batch) / 1e9


def batch_within(budget_gb: float, plan: Plan, voxels: float) -> int:
    """Return the largest batch that fits, at least ``LEAST_BATCH``.

    Parameters
    ----------
    budget_gb
        Memory of a training step, in 10^9 bytes.
    plan
        The plan with the patch.
    voxels
        Of the whole dataset after resampling.
    """
    by_memory = math.floor(budget_gb / _batch_gb(plan, 1))
    by_data = math.floor(LARGEST_SHARE * voxels / math.prod(plan.patch_size))
    return max(LEAST_BATCH, min(by_memory, by_data, MOST_PATCHES))


def check_memory_budget(plan: Plan, config: FederationConfig) -> None:
    """Check that a plan fits into ``training.memory_gb``, if the file has it.

    Raises
    ------
    ConfigError
        It does not.
    """
    budget = config.training.memory_gb
    batch = config.training.patches_per_step(plan)
    if budget is not None and (needed := step_gb(plan, config)) > budget:
        raise ConfigError(
            f"training.memory_gb: a step with patch_size {list(plan.patch_size)} and batch_size {batch} takes about "
            f"{needed:.1f} GB, more than {budget:g}; lower them, or raise it"
        )


def plan_within(budget_gb: float, config: FederationConfig, make: Callable[[int], Plan]) -> Plan:
    """Return the plan with the largest patch that fits.

    Parameters
    ----------
    budget_gb
        Memory of a training step, in 10^9 bytes.
    config
        The federation.
    make
        Makes a plan whose patch has at most so many voxels.

    Raises
    ------
    ConfigError
        No patch of ``SMALLEST_PATCH`` voxels fits.
    """
    plan = make(MOST_PATCH_VOXELS)
    while (needed := step_gb(plan, config)) > budget_gb:
        voxels = math.prod(plan.patch_size)
        if voxels <= SMALLEST_PATCH:
            check_memory_budget(plan, config)
        # A first guess a little too large; from there in the smallest steps.
        plan = make(max(SMALLEST_PATCH, min(voxels - 1, math.ceil(1.1 * voxels * budget_gb / needed))))
    return plan
