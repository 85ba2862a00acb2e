"""The arms of a comparison: what each of them trains, on whose data, and for how many gradient steps.

Equal in all arms are the data, the plan, the split of every site's patients, the batch, the optimizer and the schedule
of the learning rate, which decays over all steps of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import ValidationError

from common.config.algorithms import COUNT_SITES_ALIKE, OPTIONS
from common.config.federation import FederationConfig
from common.config.personal import Method, PersonalConfig, check_personal
from common.config.strategy import StrategyConfig
from common.errors import ConfigError
from common.plan.describe_errors import describe_validation_error
from server.rounds.strategies.registry import make_strategy

REFERENCE = "fedavg"
"""The arm that the others are tested against."""
ALONE = "local"
"""The arm that says what a site reaches by itself."""
POOLED = "pooled"


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes
    ----------
    data
        ``sites``: a federation; ``alone``: a model for each site, from its data only; ``pooled``: all data in a place.
    all_steps
        Whether a baseline's model makes as many steps as all sites of the federation together, or as many as one site.
    meaning
        For the report.
    personal
        Method of the sites' personal models: each is scored on its own site's patients. None for one shared model.
    """

    name: str
    data: Literal["sites", "alone", "pooled"]
    all_steps: bool = False
    meaning: str = ""
    personal: Method | None = None


_BASELINES = (
    Arm(ALONE, "alone", False, "one model for each site, from its data only; steps as a site makes in the federation"),
    Arm("local_long", "alone", True, "like local; steps as all sites of the federation make together"),
    Arm(POOLED, "pooled", True, "one model from all data in one place; steps as all sites make together"),
    Arm("pooled_short", "pooled", False, "like pooled; steps as one site makes in the federation"),
)
_PERSONAL: Mapping[str, Method] = {"fedbn": "norms", "ditto": "ditto"}
ARMS: Mapping[str, Arm] = (
    {arm.name: arm for arm in _BASELINES}
    | {name: Arm(name, "sites", meaning=f"federation with strategy.name: {name}") for name in OPTIONS}
    | {
        name: Arm(name, "sites", False, f"the file's federation with personal.method: {method}", method)
        for name, method in _PERSONAL.items()
    }
)
"""Every arm by its name."""


def parse_arms(text: str) -> tuple[Arm, ...]:
    """Parse ``local,pooled,fedavg``.

    Raises
    ------
    ConfigError
        An arm does not exist, or is named twice, or none is named.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--arms: names no arm; there are {', '.join(ARMS)}")
    for name in names:
        if name not in ARMS:
            similar = get_close_matches(name, ARMS, 1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise ConfigError(f"--arms {name}: is no arm{hint} There are {', '.join(ARMS)}")
        if names.count(name) > 1:
            raise ConfigError(f"--arms {name}: is given twice; keep one of them")
    return tuple(ARMS[name] for name in names)


def seeds_from(config: FederationConfig, count: int) -> tuple[int, ...]:
    """Return the seeds of a comparison: the file's, and those that follow it.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if count < 1:
        raise ConfigError(f"--seeds {count}: must be at least 1; 3 or more show how much chance decides")
    return tuple(range(config.seed, config.seed + count))


def configuration(arm: Arm, config: FederationConfig, sites: int, seed: int) -> FederationConfig:
    """Return the federation file of one run of an arm.

    Parameters
    ----------
    arm
        The arm.
    config
        The federation that is compared.
    sites
        Number of its sites.
    seed
        Of initial weights and patches.

    Raises
    ------
    ConfigError
        The federation cannot run the arm.
    """
    if config.training.local_epochs is not None:
        raise ConfigError(
            "training.local_epochs: the arms of a comparison make the same number of steps; write local_steps instead"
        )
    steps = config.training.local_steps * (sites if arm.all_steps else 1)
    changes: dict[str, Any] = {
        "personal": _personal(arm, config),
        "seed": seed,
        "training": config.training.model_copy(update={"local_steps": steps}),
        "strategy": _strategy(arm, config.strategy),
    }
    if config.simulation is not None:
        changes["simulation"] = config.simulation.model_copy(update={"pooled": False})
    changed = config.model_copy(update=changes)
    if arm.data == "sites":
        try:
            make_strategy(changed, sites)
        except ConfigError as error:
            raise ConfigError(f"--arms {arm.name}: {error}") from None
    return changed


def _personal(arm: Arm, config: FederationConfig) -> PersonalConfig | None:
    """Return a personal arm's section with the options that the file has for its method, else with its defaults."""
    if arm.personal is None:
        return None
    written = config.personal
    personal = written if written and written.method == arm.personal else PersonalConfig(method=arm.personal)
    try:
        check_personal(personal, config.training.trainable)
    except ValueError as error:
        raise ConfigError(f"--arms {arm.name}: {error}") from None
    return personal


def check_configuration(config: FederationConfig, arms: Sequence[Arm], sites: Sequence[str]) -> None:
    """Check, before anything is trained, that a federation of these sites can run every arm.

    Raises
    ------
    ConfigError
        It cannot.
    """
    if len(sites) < 2:
        raise ConfigError(f"simulation.partition: gives one site ({sites[0]}); a comparison needs at least 2")
    for arm in arms:
        configuration(arm, config, len(sites), config.seed)


def _strategy(arm: Arm, written: StrategyConfig) -> StrategyConfig:
    """Return an algorithm with the options that the file has for it, else with its defaults."""
    if arm.data != "sites":
        # One site's update is the next model: there is nothing to weigh, to wait for, or to protect from.
        return StrategyConfig(max_failed_rounds=written.max_failed_rounds, average_rounds=written.average_rounds)
    if arm.name == written.name or arm.personal is not None:
        return written
    content = written.model_dump(mode="json", exclude={"name", *written.options})
    if arm.name in COUNT_SITES_ALIKE or written.name in COUNT_SITES_ALIKE:
        del content["weights"]
    try:
        return StrategyConfig.model_validate(content | {"name": arm.name})
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, StrategyConfig, f"--arms {arm.name}")) from None
