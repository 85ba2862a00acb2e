"""Resolves a federation file to the plan that all sites share.

In simulation, settings that the file leaves open follow from the dataset's fingerprint. In a real federation the scans
are never in one place, so the file must specify everything.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from common.config.federation import FederationConfig
from common.errors import ConfigError
from common.plan.base import Spacing
from common.plan.describe_errors import describe_validation_error
from common.plan.plan import IntensityPlan, Plan, PreprocessingPlan
from common.planning.fingerprint import Fingerprint
from common.planning.planner import make_plan, plan_network, plan_stages
from common.privacy.calibration import calibrate, check_calibration


def resolve_plan(
    config: FederationConfig, fingerprint: Fingerprint, channels: Sequence[str], labels: dict[int, str]
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


def _resolve(
    config: FederationConfig, fingerprint: Fingerprint, channels: Sequence[str], labels: dict[int, str]
) -> Plan:
    wanted = config.preprocessing
    plan = make_plan(
        fingerprint,
        channels,
        labels,
        "CT" if config.modality == "CT" else "MR",
        config.model,
        spacing=wanted.spacing if isinstance(wanted.spacing, tuple) else None,
    )
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
    return with_privacy(Plan.model_validate(plan.model_dump() | {"preprocessing": preprocessing}), config)


def with_privacy(plan: Plan, config: FederationConfig) -> Plan:
    """Return the plan with the noise calibrated to the federation file's budget."""
    privacy = None
    if config.privacy is not None:
        privacy = calibrate(config.privacy, config.rounds, config.training.local_steps)
    return plan.model_copy(update={"privacy": privacy})


def _per_channel(intensity: tuple[IntensityPlan, ...], channels: int) -> tuple[IntensityPlan, ...]:
    if len(intensity) == 1:
        return intensity * channels
    if len(intensity) != channels:
        raise ConfigError(f"preprocessing.intensity: {len(intensity)} entries, but there are {channels} channels")
    return intensity


def plan_from_config(config: FederationConfig) -> Plan:
    """Return the plan of a federation whose file specifies everything.

    Raises
    ------
    ConfigError
        If a value that a simulation would measure is missing, or values contradict each other.
    """
    return with_privacy(_plan(config), config)


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


def _plan(config: FederationConfig) -> Plan:
    wanted, network = config.preprocessing, config.model
    if not config.labels:
        raise ConfigError("labels: is missing; name every label: {1: name, ...}")
    if not config.channels:
        raise ConfigError("channels: is missing; name every input channel: [T1]")
    if wanted.spacing == "auto":
        raise ConfigError(
            "preprocessing.spacing: write it in mm ([1, 1, 1]) or keep; auto needs all scans in one place"
        )
    if isinstance(network.patch_size, str):
        raise ConfigError("model.patch_size: write it in voxels ([64, 64, 64]); auto needs all scans in one place")
    if wanted.intensity == "auto" and config.modality == "CT":
        raise ConfigError("preprocessing.intensity: give the window, mean and std; auto needs all scans in one place")
    spacing: Spacing | None = wanted.spacing if isinstance(wanted.spacing, tuple) else None
    strides, kernels = plan_stages(network.patch_size, spacing or (1.0, 1.0, 1.0), len(network.channels))
    intensity = wanted.intensity if isinstance(wanted.intensity, tuple) else (IntensityPlan(),)
    try:
        return Plan(
            channels=config.channels,
            labels=config.labels,
            preprocessing=PreprocessingPlan(
                spacing=spacing,
                intensity=_per_channel(intensity, len(config.channels)),
                image_order=wanted.image_order,
                label_mode=wanted.label_mode,
                anisotropy=wanted.anisotropy,
                crop=wanted.crop,
            ),
            model=plan_network(network, len(config.channels), len(config.labels), strides, kernels),
            patch_size=network.patch_size,
            mirror_axes=network.mirror_axes,
        )
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, Plan, "model and preprocessing")) from None
