"""Resolves a federation file to the plan that all sites share.

In simulation, settings that the file leaves open follow from the dataset's fingerprint. In a real federation the scans
are never in one place: the settings follow from sums that all sites share, and are written into the file before any kit
is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import ValidationError

from common.config.federation import FederationConfig
from common.errors import ConfigError
from common.formatting import counted
from common.plan.base import Spacing
from common.plan.describe_errors import describe_validation_error
from common.plan.plan import IntensityPlan, Plan, PreprocessingPlan
from common.planning.memory_budget import batch_within, check_memory_budget, plan_within
from common.planning.planner import LARGEST_PATCH, Measured, make_plan, plan_network, plan_stages
from common.planning.shared_fingerprint import MOST_LABELS, SharedFingerprint
from common.privacy.calibration import calibrate, check_calibration
from common.privacy.second_opinion import confirm

_AUTO = "auto needs the fingerprints of all sites (fedvox-server provision --fingerprint)"


def resolve_plan(
    config: FederationConfig, fingerprint: Measured, channels: Sequence[str], labels: dict[int, str]
) -> Plan:
    """Derive the plan from the data, overridden by the settings in the federation file.

    Raises
    ------
    ConfigError
        If the settings in the file contradict each other or the data.
    """
    try:
        return _resolve(config, fingerprint, channels, labels)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, Plan, "model and preprocessing")) from None


def _resolve(config: FederationConfig, fingerprint: Measured, channels: Sequence[str], labels: dict[int, str]) -> Plan:
    wanted, budget = config.preprocessing, config.training.memory_gb

    def make(largest_patch: int) -> Plan:
        return make_plan(
            fingerprint,
            channels,
            labels,
            "CT" if config.modality == "CT" and wanted.intensity == "auto" else "MR",
            config.model,
            spacing=wanted.spacing if isinstance(wanted.spacing, tuple) else None,
            largest_patch=largest_patch,
        )

    if budget is not None and config.model.patch_size == "auto":
        plan = plan_within(budget, config, make)
    else:
        plan = make(LARGEST_PATCH)
    if budget is not None and config.training.batch_size == "auto":
        shape = fingerprint.median_shape(plan.preprocessing.spacing or fingerprint.spacing_percentile(50))
        batch = batch_within(budget, plan, float(fingerprint.cases) * math.prod(shape))
        plan = plan.model_copy(update={"batch_size": batch})
    check_memory_budget(plan, config)
    preprocessing = plan.preprocessing.model_dump() | {
        "image_order": wanted.image_order,
        "label_mode": wanted.label_mode,
        "anisotropy": wanted.anisotropy,
        "crop": wanted.crop,
    }
    if wanted.spacing == "keep":
        preprocessing["spacing"] = None
    if isinstance(wanted.intensity, tuple):
        preprocessing["intensity"] = _per_channel(wanted.intensity, len(channels))
    wishes = {"preprocessing": preprocessing, "label_codes": config.label_codes}
    return with_privacy(Plan.model_validate(plan.model_dump() | wishes), config)


def with_privacy(plan: Plan, config: FederationConfig) -> Plan:
    """Return the plan with the noise calibrated to the federation file's budget, and confirmed by Opacus.

    Raises
    ------
    ConfigError
        If the budget cannot be met, or Opacus does not confirm that it is.
    """
    privacy = None
    if config.privacy is not None:
        privacy = calibrate(config.privacy, config.rounds, config.training.local_steps)
        confirm(privacy.costs(config.rounds, config.rounds + 1), config.privacy.epsilon, config.privacy.delta)
    return plan.model_copy(update={"privacy": privacy})


def _per_channel(intensity: tuple[IntensityPlan, ...], channels: int) -> tuple[IntensityPlan, ...]:
    if len(intensity) == 1:
        return intensity * channels
    if len(intensity) != channels:
        raise ConfigError(
            f"preprocessing.intensity: {counted(len(intensity), 'entry', 'entries')} for {counted(channels, 'channel')}"
        )
    return intensity


def plan_from_config(config: FederationConfig) -> Plan:
    """Return the plan of a federation whose file specifies everything.

    Raises
    ------
    ConfigError
        If a value that a simulation would measure is missing, or values contradict each other.
    """
    plan = _plan(config)
    check_memory_budget(plan, config)
    return with_privacy(plan, config)


def check_plan(plan: Plan, config: FederationConfig) -> None:
    """Check that a plan made elsewhere follows from the federation file.

    Raises
    ------
    ConfigError
        If it does not, or the file does not specify everything.
    """
    if plan.model_copy(update={"privacy": None}) != _plan(config):
        raise ConfigError("the plan does not follow from the federation file")
    if (plan.privacy is None) != (config.privacy is None):
        raise ConfigError("privacy: only one of the plan and the federation file has it")
    if plan.privacy is not None and config.privacy is not None:
        check_calibration(plan.privacy, config.privacy, config.rounds, config.training.local_steps)


def open_settings(config: FederationConfig) -> tuple[str, ...]:
    """Return the keys of a network federation's file that are ``auto`` and need the sites' fingerprints.

    Raises
    ------
    ConfigError
        There are some, and the file has ``privacy``, or does not name channels and labels 1, 2, 3, ...
    """
    wanted, network = config.preprocessing, config.model
    asked = {
        "preprocessing.spacing": wanted.spacing == "auto",
        "preprocessing.intensity": wanted.intensity == "auto" and config.modality == "CT",
        "model.patch_size": network.patch_size == "auto",
        "training.batch_size": config.training.batch_size == "auto",
    }
    found = tuple(key for key, is_open in asked.items() if is_open)
    if not found:
        return ()
    if config.privacy is not None:
        raise ConfigError(
            f"{found[0]}: with privacy it cannot be auto, because the sites' fingerprints would tell about patients "
            "what no privacy budget pays for; write the value by hand"
        )
    _, labels = _names(config)
    if sorted(labels) != list(range(1, len(labels) + 1)) or len(labels) > MOST_LABELS:
        raise ConfigError(
            f"labels: {found[0]}: auto needs labels numbered 1, 2, 3, ... without gaps, at most {MOST_LABELS}; they "
            f"are {', '.join(map(str, sorted(labels)[:10]))}: renumber them, or write the values of every auto setting "
            "by hand"
        )
    return found


def with_choices(config: FederationConfig, fingerprint: SharedFingerprint) -> FederationConfig:
    """Return the federation with the numbers that follow from its sites' fingerprints in place of every ``auto``.

    Raises
    ------
    ConfigError
        If a number does not follow, a label was not found, or values contradict each other.
    """
    channels, labels = _names(config)
    if fingerprint.missing_labels:
        value = fingerprint.missing_labels[0]
        raise ConfigError(
            f"labels.{value}: at no site do minimum_cell patients or more have label {value} ({labels[value]}); remove "
            "it, or write the values of every auto setting by hand"
        )
    plan = resolve_plan(config, fingerprint, channels, labels)
    chosen = open_settings(config)
    preprocessing: dict[str, object] = {}
    if "preprocessing.spacing" in chosen:
        preprocessing["spacing"] = plan.preprocessing.spacing
    if "preprocessing.intensity" in chosen:
        preprocessing["intensity"] = plan.preprocessing.intensity
    training = {"batch_size": plan.batch_size} if "training.batch_size" in chosen else {}
    # Strides and kernels as well: with spacing keep, the kits' files alone would lead to others.
    model = {"patch_size": plan.patch_size, "strides": plan.model.strides, "kernels": plan.model.kernels}
    return config.model_copy(
        update={
            "preprocessing": config.preprocessing.model_copy(update=preprocessing),
            "model": config.model.model_copy(update=model),
            "training": config.training.model_copy(update=training),
        }
    )


def _names(config: FederationConfig) -> tuple[tuple[str, ...], dict[int, str]]:
    """Return the names of channels and labels."""
    if not (names := config.label_names):
        raise ConfigError("labels: is missing; name every label: {1: name, ...}")
    if not config.channels:
        raise ConfigError("channels: is missing; name every input channel: [T1]")
    return config.channels, names


def _plan(config: FederationConfig) -> Plan:
    wanted, network = config.preprocessing, config.model
    channels, labels = _names(config)
    if wanted.spacing == "auto":
        raise ConfigError(f"preprocessing.spacing: write it in mm ([1, 1, 1]) or keep; {_AUTO}")
    if isinstance(network.patch_size, str):
        raise ConfigError(f"model.patch_size: write it in voxels ([64, 64, 64]); {_AUTO}")
    if wanted.intensity == "auto" and config.modality == "CT":
        raise ConfigError(f"preprocessing.intensity: give the window, mean and std; {_AUTO}")
    if config.training.batch_size == "auto":
        raise ConfigError(f"training.batch_size: write a number; {_AUTO}")
    spacing: Spacing | None = wanted.spacing if isinstance(wanted.spacing, tuple) else None
    strides, kernels = plan_stages(network.patch_size, spacing or (1.0, 1.0, 1.0), len(network.channels))
    intensity = wanted.intensity if isinstance(wanted.intensity, tuple) else (IntensityPlan(),)
    try:
        return Plan(
            channels=channels,
            labels=labels,
            label_codes=config.label_codes,
            preprocessing=PreprocessingPlan(
                spacing=spacing,
                intensity=_per_channel(intensity, len(channels)),
                image_order=wanted.image_order,
                label_mode=wanted.label_mode,
                anisotropy=wanted.anisotropy,
                crop=wanted.crop,
            ),
            model=plan_network(network, len(channels), len(labels), strides, kernels),
            patch_size=network.patch_size,
            mirror_axes=network.mirror_axes,
        )
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, Plan, "model and preprocessing")) from None
