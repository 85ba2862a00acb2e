"""The arms of a comparison: what each of them trains, on whose data, and for how many gradient steps.

Equal in all arms are the data, the plan, the split of every site's patients and the batch; but for an arm's own
settings also the optimizer and the schedule of the learning rate, which decays over all steps of a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import ValidationError

from common.config.algorithms import COUNT_SITES_ALIKE, NEED_SGD, OPTIONS
from common.config.federation import FederationConfig, TrainingConfig, apply_override
from common.config.personal import Method, PersonalConfig, check_personal
from common.config.strategy import StrategyConfig
from common.config.yaml_file import parse_yaml
from common.errors import ConfigError
from common.plan.describe_errors import describe_validation_error
from server.contributions.valuation import MEANS
from server.rounds.strategies.registry import make_strategy

REFERENCE = "fedavg"
"""The arm that the others are tested against."""
ALONE = "local"
"""The arm that says what a site reaches by itself."""
POOLED = "pooled"
_VARIANT = re.compile(r"[A-Za-z0-9._]{1,40}")
_STEPS = ("training.local_steps", "training.local_epochs", "training.batch_size")
_EQUAL = ("strategy.name", *_STEPS, "training.memory_gb")
"""Keys that no arm may change: its algorithm is its name, and steps, batch and plan are those of all arms."""


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes
    ----------
    name
        Its own name: a baseline or an algorithm, or a variant of one, such as ``fedprox@strong``.
    data
        ``sites``: a federation; ``alone``: a model for each site, from its data only; ``pooled``: all data in a place.
    all_steps
        Whether a baseline's model makes as many steps as all sites of the federation together, or as many as one site.
    meaning
        For the report.
    personal
        Method of the sites' personal models: each is scored on its own site's patients. None for one shared model.
    changes
        ``key.path=value`` items that replace values of the federation file in this arm only.
    """

    name: str
    data: Literal["sites", "alone", "pooled"]
    all_steps: bool = False
    meaning: str = ""
    personal: Method | None = None
    changes: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The baseline or the algorithm."""
        return self.name.partition("@")[0]


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


def parse_arms(text: str, changes: Sequence[str] = ()) -> tuple[Arm, ...]:
    """Parse ``local,pooled,fedavg,fedprox@strong``.

    Parameters
    ----------
    text
        Names of arms; a variant has a name of its own after ``@``.
    changes
        ``arm:key.path=value`` items.

    Raises
    ------
    ConfigError
        An arm does not exist, or is named twice, or none is named; a change belongs to no arm, or is one that would
        make arms incomparable; a variant differs in nothing.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--arms: names no arm; there are {', '.join(ARMS)}")
    for name in names:
        base, at, variant = name.partition("@")
        if base not in ARMS:
            similar = get_close_matches(base, ARMS, 1)
            hint = f"; did you mean {similar[0]}?" if similar else "."
            raise ConfigError(f"--arms {name}: is no arm{hint} There are {', '.join(ARMS)}")
        if at and not _VARIANT.fullmatch(variant):
            raise ConfigError(f"--arms {name}: write letters, digits, dots and underscores after the @")
        if names.count(name) > 1:
            raise ConfigError(f"--arms {name}: is given twice; keep one of them")
    by_arm: dict[str, list[str]] = {name: [] for name in names}
    for item in changes:
        name, change = _parse_change(item)
        if name not in by_arm:
            raise ConfigError(f"--set-arm {item}: {name} is not among --arms; add it")
        by_arm[name].append(change)
    for name, own in by_arm.items():
        if "@" in name and not own:
            raise ConfigError(f"--arms {name}: differs in nothing; say in what with --set-arm {name}:KEY.PATH=VALUE")
    return tuple(_arm(name, tuple(own)) for name, own in by_arm.items())


def _arm(name: str, changes: tuple[str, ...]) -> Arm:
    arm = ARMS[name.partition("@")[0]]
    if not changes:
        return arm
    return replace(arm, name=name, meaning=f"{arm.meaning}; {', '.join(changes)}", changes=changes)


def _parse_change(item: str) -> tuple[str, str]:
    """Return the arm and the change of ``arm:key.path=value``."""
    name, _, change = (part.strip() for part in item.partition(":"))
    key, equals, _ = (part.strip() for part in change.partition("="))
    if not equals:
        raise ConfigError(f"--set-arm {item}: write it as ARM:KEY.PATH=VALUE, such as fedprox:strategy.proximal_mu=0.1")
    section, _, below = key.partition(".")
    if section not in ("strategy", "training") or key in _EQUAL or not below:
        raise ConfigError(
            f"--set-arm {item}: {key} must be equal in all arms; an arm may change keys of strategy and training but "
            f"{', '.join(_EQUAL)}"
        )
    return name, f"{key}={change.partition('=')[2].strip()}"


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


def configuration(arm: Arm, config: FederationConfig, scans: Sequence[int], seed: int) -> FederationConfig:
    """Return the federation file of one run of an arm.

    Parameters
    ----------
    arm
        The arm.
    config
        The federation that is compared.
    scans
        Number of training scans at each of its sites.
    seed
        Of initial weights and patches.

    Raises
    ------
    ConfigError
        The federation cannot run the arm.
    """
    training = config.training
    if arm.all_steps:
        steps = sum(training.steps_of(count) for count in scans)
        training = training.model_copy(update={"local_steps": steps, "local_epochs": None})
    elif arm.data == "pooled" and training.local_epochs is not None:
        raise ConfigError(
            f"--arms {arm.name}: sites make different numbers of steps (training.local_epochs); remove it"
        )
    changed = _changed(arm, config, training, seed)
    if arm.data == "sites":
        try:
            make_strategy(changed, len(scans))
        except ConfigError as error:
            raise ConfigError(f"--arms {arm.name}: {error}") from None
    return changed


def _changed(arm: Arm, config: FederationConfig, training: TrainingConfig, seed: int) -> FederationConfig:
    """Return the federation file of a run, with all that does not depend on the sites checked."""
    _check_optimizer(arm, config)
    changes: dict[str, Any] = {
        "personal": _personal(arm, config),
        "seed": seed,
        "training": training,
        "strategy": _strategy(arm, config.strategy),
    }
    if config.simulation is not None:
        kept = config.simulation.keep_updates_gb if arm.base in MEANS else 0.0
        changes["simulation"] = config.simulation.model_copy(update={"pooled": False, "keep_updates_gb": kept})
    try:
        changed = _with_changes(config.model_copy(update=changes), arm.changes)
        changed.check_combination()
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"--arms {arm.name}: {error}") from None
    return changed


def _check_optimizer(arm: Arm, config: FederationConfig) -> None:
    chosen = config.training.optimizer == "sgd" or any(item.startswith("training.optimizer=") for item in arm.changes)
    if arm.base in NEED_SGD and not chosen:
        key = f"--set-arm {arm.name}:training"
        raise ConfigError(
            f"--arms {arm.name}: strategy.name {arm.base} needs training.optimizer sgd, which needs a learning rate of "
            f"its own; add {key}.optimizer=sgd {key}.learning_rate=0.05, or another rate"
        )


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


def _with_changes(config: FederationConfig, changes: Sequence[str]) -> FederationConfig:
    if not changes:
        return config
    content = parse_yaml(config.resolved(), config.name)
    for change in changes:
        apply_override(content, change)
    try:
        return FederationConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, FederationConfig, ", ".join(changes))) from None


def check_settings(config: FederationConfig, arms: Sequence[Arm]) -> None:
    """Check, before any scan is read, what every arm changes.

    Raises
    ------
    ConfigError
        An arm's settings do not exist or do not go together.
    """
    for arm in arms:
        _changed(arm, config, config.training, config.seed)


def check_configuration(config: FederationConfig, arms: Sequence[Arm], scans: Mapping[str, int]) -> None:
    """Check, before anything is trained, that a federation of these sites can run every arm.

    Parameters
    ----------
    config, arms
        The federation and the arms.
    scans
        Site -> number of its training scans.

    Raises
    ------
    ConfigError
        It cannot.
    """
    if len(scans) < 2:
        raise ConfigError(f"simulation.partition: gives one site ({', '.join(scans)}); a comparison needs at least 2")
    for arm in arms:
        configuration(arm, config, list(scans.values()), config.seed)


def _strategy(arm: Arm, written: StrategyConfig) -> StrategyConfig:
    """Return an algorithm with the options that the file has for it, else with its defaults."""
    if arm.data != "sites":
        # One site's update is the next model: there is nothing to weigh, to wait for, or to protect from.
        return StrategyConfig(max_failed_rounds=written.max_failed_rounds, average_rounds=written.average_rounds)
    if arm.base == written.name or arm.personal is not None:
        return written
    content = written.model_dump(mode="json", exclude={"name", *written.options})
    if arm.base in COUNT_SITES_ALIKE or written.name in COUNT_SITES_ALIKE:
        del content["weights"]
    try:
        return StrategyConfig.model_validate(content | {"name": arm.base})
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, StrategyConfig, f"--arms {arm.name}")) from None
