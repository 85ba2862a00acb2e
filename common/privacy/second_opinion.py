"""What Opacus' accountants say of noise that ours have calibrated.

A mistake in an accountant is a promise to patients that is not kept, and nothing else would show it. Opacus shares no
code with ours; it is asked once per plan, because it takes seconds, and once in a process about the same noise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

from common.errors import ConfigError
from common.plan.privacy import Spend

ERROR = 0.01
"""Relative error that Opacus' accountant is asked for."""
_MOST_POINTS = 2**20
_DELTA_ERROR = 1 / 1000  # of delta, the accountant's default


def confirm(spends: Sequence[Spend], epsilon: float, delta: float) -> None:
    """Check that each of these spends, of disjoint patients, keeps to a budget in the opinion of Opacus.

    Raises
    ------
    ConfigError
        If one exceeds ``epsilon`` at ``delta`` by more than the error that Opacus was asked for.
    """
    for spend in spends:
        error = max(ERROR * epsilon, _finest_error(spend.steps, delta))
        spent = _spent(spend, delta, error)
        # Opacus adds its error to its estimate: twice that is the most that can be between two right accountants.
        if not spent <= epsilon + 2.1 * error:
            raise ConfigError(
                f"privacy: the {spend.purpose} noise {spend.noise_multiplier:.4g} was calibrated to epsilon "
                f"{epsilon:g}, but Opacus' accountant says {spent:.4g}; do not use it, and report this with the "
                "federation file"
            )


def _finest_error(steps: int, delta: float) -> float:
    """Return the error with which the grid of losses, some 12 wide, has ``_MOST_POINTS``."""
    return 12 * math.sqrt(steps * math.log(12 / (delta * _DELTA_ERROR)) / 2) / _MOST_POINTS


@lru_cache(maxsize=128)
def _spent(spend: Spend, delta: float, error: float) -> float:
    # Imported late: Opacus loads PyTorch's compiler, which takes seconds.
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.gdp import eps_from_mu

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if spend.sample_rate == 1:
            return float(eps_from_mu(mu=math.sqrt(spend.steps) / spend.noise_multiplier, delta=delta))
        accountant = PRVAccountant()
        accountant.history = [(spend.noise_multiplier, spend.sample_rate, spend.steps)]
        return float(accountant.get_epsilon(delta=delta, eps_error=error, delta_error=delta * _DELTA_ERROR))
