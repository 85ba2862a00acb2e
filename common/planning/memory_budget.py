"""The largest patch whose training step fits into a memory budget."""

from __future__ import annotations

import math
from collections.abc import Callable

from common.config.federation import FederationConfig
from common.errors import ConfigError
from common.models.memory import training_bytes
from common.plan.base import MOST_PATCH_VOXELS
from common.plan.plan import Plan

WORKING = 3.0
"""Memory of a training step, as a multiple of what it keeps for the backward pass: 1.8 to 2.9 were measured on CPUs."""
SMALLEST_PATCH = 16**3


def step_gb(plan: Plan, config: FederationConfig) -> float:
    """Return about how much memory a training step takes, in 10^9 bytes."""
    batch = 1 if config.privacy else config.training.batch_size
    return WORKING * training_bytes(plan.model, plan.patch_size, batch) / 1e9


def check_memory_budget(plan: Plan, config: FederationConfig) -> None:
    """Check that a plan fits into ``training.memory_gb``, if the file has it.

    Raises
    ------
    ConfigError
        It does not.
    """
    budget = config.training.memory_gb
    if budget is not None and (needed := step_gb(plan, config)) > budget:
        raise ConfigError(
            f"training.memory_gb: a step with patch_size {list(plan.patch_size)} and batch_size "
            f"{config.training.batch_size} takes about {needed:.1f} GB, more than {budget:g}; lower them, or raise it"
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
