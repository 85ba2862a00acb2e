"""The federation file, validated before anything runs.

Every error names the file, the key, the value and what is allowed. Defaults are values that worked in our experiments;
``resolved`` writes them all out, so that a run folder documents its run completely.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from common.config.initial_model import resolve_initial_model
from common.config.labels import LabelTable, check_class_weights, codes_of, names_of
from common.config.network import FederationName, NetworkConfig
from common.config.personal import PersonalConfig, check_personal
from common.config.privacy import PrivacyConfig, with_unscored_training
from common.config.simulation import SimulationConfig
from common.config.strategy import StrategyConfig, check_average, check_least_sites, with_least_sites
from common.config.yaml_file import dump_yaml, parse_yaml, read_yaml
from common.errors import ConfigError
from common.plan.augmentation import AugmentationPlan
from common.plan.base import (
    LEAST_BATCH,
    MOST_STAGES,
    Axis,
    BatchSize,
    Blocks,
    Code,
    Fraction,
    Frozen,
    Kernel,
    Name,
    NonNegativeFloat,
    PatchSize,
    PositiveFloat,
    PositiveInt,
    Real,
    SplineOrder,
    Stride,
    Switch,
    TargetSpacing,
    Whole,
    Width,
    check_patch_voxels,
)
from common.plan.describe_errors import describe_validation_error
from common.plan.plan import IntensityPlan, Plan
from common.weights.digest import Digest

_ANCHORS = re.compile(r"x(-.*)?")
"""Keys that only hold values for anchors (``x-small: &small {batch_size: 1}``), as in Compose files."""


class PreprocessingConfig(Frozen):
    """Requested preprocessing; ``auto`` is resolved from the fingerprint of the dataset, or of all sites.

    Attributes
    ----------
    spacing
        Target spacing in mm along x, y, z; ``keep`` leaves every volume on its own grid.
    intensity
        ``auto``, one entry for all channels, or one entry per channel.
    """

    spacing: Literal["auto", "keep"] | TargetSpacing = "auto"
    intensity: Literal["auto"] | Annotated[tuple[IntensityPlan, ...], Field(min_length=1)] = "auto"
    image_order: SplineOrder = 3
    label_mode: Literal["nearest", "linear"] = "linear"
    anisotropy: Annotated[Real, Field(gt=1, le=1000)] = 3.0
    crop: Literal["nonzero", "none"] = "nonzero"


class ModelConfig(Frozen):
    """Requested network; ``auto`` is resolved from spacing and volume size."""

    channels: Annotated[tuple[Width, ...], Field(min_length=2, max_length=MOST_STAGES)] = (16, 32, 64, 128)
    patch_size: Literal["auto"] | PatchSize = "auto"
    strides: Literal["auto"] | tuple[Stride, ...] = "auto"
    kernels: Literal["auto"] | tuple[Kernel, ...] = "auto"
    blocks: Blocks | tuple[Blocks, ...] = 2
    decoder_blocks: Blocks = 2
    residual: Switch = False
    groups: Width = 8
    deep_supervision: Switch = False
    mirror_axes: tuple[Axis, ...] = ()

    @model_validator(mode="after")
    def _patch_fits(self) -> Self:
        if self.patch_size != "auto":
            check_patch_voxels(self.patch_size)
        return self


class TrainingConfig(Frozen):
    """Local training at a site.

    Attributes
    ----------
    local_steps
        Optimisation steps per site and round; with ``local_epochs`` the most that a site makes.
    local_epochs
        Sites make as many steps a round as draw that many patches for every training scan, so that sites with more
        scans make more of them. None: all sites make ``local_steps``.
    learning_rate
        Initial value; it decays as (1 - step / total) ** ``poly_power`` over the whole federation.
    weight_decay, momentum
        Of AdamW (betas 0.9, 0.999) and SGD (Nesterov), respectively.
    batch_size
        Patches per step; ``auto`` takes as many as ``memory_gb`` holds beside the largest patch
        (``common.planning.memory_budget``).
    gradient_clip
        Largest L2 norm of the gradient; 0 disables clipping.
    class_weights
        One per class, background first.
    foreground_fraction
        Share of patches that are centred on a labelled voxel.
    precision
        Of the forward and backward pass; ``auto`` is resolved by ``common.system.devices.autocast_dtype``.
    compile
        Apply ``torch.compile`` (pays off on GPUs in long runs; needs a C compiler at the site).
    workers
        Background threads that prepare patches.
    memory_gb
        Memory that a training step may take at every site, in 10^9 bytes: ``model.patch_size: auto`` takes the largest
        patch that fits, and one that is written must fit. None: no limit but ``common.planning.planner.LARGEST_PATCH``.
    trainable
        Part of the network that sites train (see ``common.models.trainable``); the rest is frozen.
    validate_local
        N: in every N-th round, sites also score the models that they trained, each on its own validation patients, and
        send the mean Dice. 0 for never, which is the default under ``privacy`` and all that it allows.
    """

    memory_gb: Annotated[Real, Field(ge=0.1, le=1000)] | None = None
    trainable: Literal["all", "head", "norms", "head_and_norms", "decoder"] = "all"
    local_steps: PositiveInt = 40
    local_epochs: Annotated[PositiveFloat, Field(le=1000)] | None = None
    batch_size: Literal["auto"] | BatchSize = 2
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 2e-3
    poly_power: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 1e-2
    momentum: Annotated[Fraction, Field(lt=1)] = 0.9
    gradient_clip: NonNegativeFloat = 12.0
    loss: Literal["dice_ce", "focal", "tversky"] = "dice_ce"
    class_weights: Annotated[tuple[PositiveFloat, ...], Field(min_length=2)] | None = None
    foreground_fraction: Fraction = 0.5
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: Switch = False
    workers: Annotated[PositiveInt, Field(le=32)] = 1
    augmentation: AugmentationPlan | None = AugmentationPlan()
    validate_local: Annotated[Whole, Field(ge=0, le=1_000_000)] = 5

    def patches_per_step(self, plan: Plan) -> int:
        """Return how many patches a step takes; under ``auto`` that is the plan's number."""
        return (plan.batch_size or LEAST_BATCH) if self.batch_size == "auto" else self.batch_size

    @model_validator(mode="after")
    def _memory_for_a_batch(self) -> Self:
        if self.batch_size == "auto" and self.memory_gb is None:
            raise ValueError("batch_size: auto fills training.memory_gb, which is missing; write it, or a number")
        if self.batch_size == "auto" and self.local_epochs is not None:
            raise ValueError("local_epochs needs a number for training.batch_size, not auto; write it")
        return self

    def steps_of(self, scans: int) -> int:
        """Return the steps per round of a site with so many training scans."""
        if self.local_epochs is None or self.batch_size == "auto":
            return self.local_steps
        return min(max(1, math.ceil(self.local_epochs * scans / self.batch_size)), self.local_steps)

    def scores_own_model(self, round_number: int) -> bool:
        """Return whether sites score the models that they train in a round."""
        return self.validate_local > 0 and round_number % self.validate_local == 0


class EarlyStop(Frozen):
    """Stop when the mean validation Dice has not improved by ``min_delta`` for ``patience`` rounds."""

    patience: PositiveInt = 5
    min_delta: NonNegativeFloat = 0.001


class TransportConfig(Frozen):
    """How weights are encoded (see ``common.weights.encoding``): updates for upload, the global model for download."""

    upload: Literal["float32", "bfloat16", "int8"] = "float32"
    download: Literal["float32", "bfloat16"] = "float32"


class FederationConfig(Frozen):
    """A whole federation file.

    Attributes
    ----------
    labels
        Value in the label maps -> name, or name and code, foreground only; by default the dataset's own.
    channels
        Names of the input channels; by default the dataset's own.
    modality
        ``CT`` clips to a window from the whole dataset's foreground, others to percentiles of each volume.
    initial_model
        Folder of the bundle that the first round starts from, relative to the file. Sites do not need it: they
        receive the weights in the first round. By default weights are initialised from the seed.
    initial_model_sha256
        SHA-256 of its weights file; filled in when the file is read, because the digest covers it.
    """

    name: FederationName
    description: str = ""
    labels: LabelTable | None = None
    channels: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)] | None = None
    modality: Literal["CT", "MR", "other"] = "MR"
    rounds: PositiveInt
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 0
    strategy: StrategyConfig = StrategyConfig()
    personal: PersonalConfig | None = None
    early_stop: EarlyStop | None = None
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    initial_model: Annotated[str, Field(min_length=1)] | None = None
    initial_model_sha256: Digest | None = None
    transport: TransportConfig = TransportConfig()
    privacy: PrivacyConfig | None = None
    network: NetworkConfig | None = None
    simulation: SimulationConfig | None = None

    @model_validator(mode="after")
    def _initial_model_is_known_by_its_hash(self) -> Self:
        if self.initial_model is not None and self.initial_model_sha256 is None:
            raise ValueError("initial_model needs initial_model_sha256: the SHA-256 of its model.safetensors")
        return self

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_rest(cls, content: Any) -> Any:
        return with_unscored_training(with_least_sites(content)) if isinstance(content, dict) else content

    @model_validator(mode="after")
    def _strategy_fits_rounds_and_sites(self) -> Self:
        check_average(self.strategy, self.rounds)
        if self.network is None:
            return self
        check_least_sites(self.strategy, len(self.network.sites))
        counts = self.strategy.weights
        if isinstance(counts, dict) and (differing := set(counts) ^ set(self.network.sites)):
            names = ", ".join(sorted(differing))
            raise ValueError(f"strategy.weights must name every site of network.sites and no other; see {names}")
        return self

    @model_validator(mode="after")
    def _privacy_allows_the_rest(self) -> Self:
        if self.privacy is None:
            return self
        if self.training.local_epochs is not None:
            raise ValueError(
                "training.local_epochs does not go with privacy, whose noise is for a fixed number of steps; write "
                "training.local_steps"
            )
        if self.early_stop is not None and self.privacy.validation == "off":
            raise ValueError("early_stop needs scores, and privacy.validation is off; remove one of them")
        if self.training.batch_size == "auto":
            raise ValueError("training.batch_size must be a number with privacy, whose steps take patients one by one")
        if self.training.validate_local > 0:
            raise ValueError(
                "training.validate_local must be 0 with privacy: nothing pays for scores of the models that sites train"
            )
        return self

    @model_validator(mode="after")
    def _strategy_fits_the_training(self) -> Self:
        self.check_combination()
        return self

    def check_combination(self) -> None:
        """Refuse settings that the algorithm does not work with.

        Raises
        ------
        ValueError
            Names the key, the reason and what to write.
        """
        self.strategy.check_combination(
            self.training.optimizer, self.transport.download, is_private=self.privacy is not None
        )
        check_personal(self.personal, self.training.trainable)

    @model_validator(mode="after")
    def _one_weight_per_class(self) -> Self:
        if self.labels is not None:
            check_class_weights(self.training.class_weights, len(self.labels))
        return self

    @property
    def label_names(self) -> dict[int, str] | None:
        """Names of the labels; None if they are the dataset's own."""
        return names_of(self.labels)

    @property
    def label_codes(self) -> dict[int, Code]:
        """Codes of the labels that have one."""
        return codes_of(self.labels)

    def resolved(self) -> str:
        """Return the configuration as YAML with every default written out."""
        return dump_yaml(self.model_dump(mode="json"))

    def digest(self) -> str:
        """Return the SHA-256 of everything that affects the result: equal digests mean equal federations."""
        # The initial model's hash identifies it, not its path.
        content = self.model_dump(mode="json", exclude={"description": True, "initial_model": True})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_federation(path: Path, overrides: Sequence[str] = ()) -> FederationConfig:
    """Read and validate a federation file.

    Parameters
    ----------
    path
        The YAML file.
    overrides
        ``key.path=value`` items that replace single values; each value is parsed as YAML.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not YAML, or a key, type or range is wrong.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; give the path of a federation file (examples: deploy/examples)"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping of keys such as name, rounds, training")
    content = {key: value for key, value in content.items() if not _ANCHORS.fullmatch(str(key))}
    for override in overrides:
        apply_override(content, override)
    # Paths on the command line are relative to the working directory, paths in the file to the file.
    typed = any(override.partition("=")[0].strip() == "initial_model" for override in overrides)
    resolve_initial_model(content, path, Path.cwd() if typed else path.parent)
    try:
        return FederationConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, FederationConfig, str(path))) from None


def apply_override(content: dict[Any, Any], override: str) -> None:
    """Replace a value of a federation file's content with that of a ``key.path=value`` item."""
    key_path, equals, text = override.partition("=")
    keys = key_path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: write it as key.path=value, for example training.local_steps=20")
    value = parse_yaml(text, f"--set {override}")
    place = content
    for name in keys[:-1]:
        key = _existing(place, name)
        below = place.get(key)
        if below is None:
            below = place[key] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: {key} is a single value and has no keys below it")
        place = below
    place[_existing(place, keys[-1])] = value


def _existing(place: Mapping[Any, Any], name: str) -> Any:
    """Return the key that reads as ``name``, such as 1 for ``1``, or ``name`` itself."""
    return next((key for key in place if str(key) == name), name)


def as_json(model: BaseModel | Mapping[str, Any]) -> str:
    """Format a model or a mapping as indented JSON with a final newline."""
    content = model.model_dump(mode="json") if isinstance(model, BaseModel) else model
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # What is no sign is written as an escape, so that it can be printed and stored.
    return "".join(sign if sign.isprintable() or sign == "\n" else json.dumps(sign)[1:-1] for sign in text)
