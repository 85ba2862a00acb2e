"""The federation file, validated before anything runs.

Every error names the file, the key, the value and what is allowed. Defaults are values that worked in our experiments;
``resolved`` writes them all out, so that a run folder documents its run completely.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from common.config.describe_errors import describe_validation_error
from common.config.initial_model import resolve_initial_model
from common.config.network import NetworkConfig
from common.config.privacy import PrivacyConfig
from common.config.strategy import Fraction, StrategyConfig, check_least_sites, with_least_sites
from common.config.yaml_file import dump_yaml, parse_yaml, read_yaml
from common.errors import ConfigError
from common.plan.augmentation import AugmentationPlan
from common.plan.base import Frozen, Kernel, PositiveInt, Spacing, Stride
from common.plan.plan import IntensityPlan
from common.plan.scanner_shift import ScannerShift

_ANCHORS = re.compile(r"x(-.*)?")
"""Keys that only hold values for anchors (``x-small: &small {batch_size: 1}``), as in Compose files."""
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class PreprocessingConfig(Frozen):
    """Requested preprocessing; ``auto`` is resolved from the dataset's fingerprint (simulation only).

    Attributes
    ----------
    spacing
        Target spacing in mm along x, y, z; ``keep`` leaves every volume on its own grid.
    intensity
        ``auto``, one entry for all channels, or one entry per channel.
    """

    spacing: Literal["auto", "keep"] | Spacing = "auto"
    intensity: Literal["auto"] | tuple[IntensityPlan, ...] = "auto"
    image_order: Literal[1, 3] = 3
    label_mode: Literal["nearest", "linear"] = "linear"
    anisotropy: float = Field(default=3.0, gt=1)
    crop: Literal["nonzero", "none"] = "nonzero"


class ModelConfig(Frozen):
    """Requested network; ``auto`` is resolved from spacing and volume size."""

    channels: tuple[PositiveInt, ...] = (16, 32, 64, 128)
    patch_size: Literal["auto"] | tuple[PositiveInt, PositiveInt, PositiveInt] = "auto"
    strides: Literal["auto"] | tuple[Stride, ...] = "auto"
    kernels: Literal["auto"] | tuple[Kernel, ...] = "auto"
    blocks: PositiveInt | tuple[PositiveInt, ...] = 2
    decoder_blocks: PositiveInt = 2
    residual: bool = False
    groups: PositiveInt = 8
    deep_supervision: bool = False
    mirror_axes: tuple[Literal[0, 1, 2], ...] = ()


class TrainingConfig(Frozen):
    """Local training at a site.

    Attributes
    ----------
    local_steps
        Optimisation steps per site and round.
    learning_rate
        Initial value; it decays as (1 - step / total) ** ``poly_power`` over the whole federation.
    weight_decay, momentum
        Of AdamW (betas 0.9, 0.999) and SGD (Nesterov), respectively.
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
    trainable
        Part of the network that sites train (see ``common.models.trainable``); the rest is frozen.
    """

    trainable: Literal["all", "head", "norms", "head_and_norms", "decoder"] = "all"
    local_steps: PositiveInt = 40
    batch_size: PositiveInt = 2
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 2e-3
    poly_power: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 1e-2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    gradient_clip: NonNegativeFloat = 12.0
    loss: Literal["dice_ce", "focal", "tversky"] = "dice_ce"
    class_weights: tuple[PositiveFloat, ...] | None = None
    foreground_fraction: Fraction = 0.5
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    workers: Annotated[int, Field(ge=1, le=32)] = 1
    augmentation: AugmentationPlan | None = AugmentationPlan()


class EarlyStop(Frozen):
    """Stop when the mean validation Dice has not improved by ``min_delta`` for ``patience`` rounds."""

    patience: PositiveInt = 5
    min_delta: NonNegativeFloat = 0.001


class TransportConfig(Frozen):
    """How weights are encoded (see ``common.weights.encoding``): updates for upload, the global model for download."""

    upload: Literal["float32", "bfloat16", "int8"] = "float32"
    download: Literal["float32", "bfloat16"] = "float32"


class ColumnPartition(Frozen):
    """One site per value of a CSV column; the file is in the dataset folder."""

    method: Literal["column"]
    file: str
    column: str
    case_column: str = "case"
    validation_fraction: OpenFraction = 0.2


class IidPartition(Frozen):
    """Equal random shares."""

    method: Literal["iid"]
    sites: PositiveInt
    validation_fraction: OpenFraction = 0.2


class QuantityPartition(Frozen):
    """Unequal shares whose sizes come from a Dirichlet distribution; smaller ``alpha`` means more unequal."""

    method: Literal["quantity"]
    sites: PositiveInt
    alpha: PositiveFloat = 0.5
    minimum: Annotated[int, Field(ge=2)] = 5
    validation_fraction: OpenFraction = 0.2


class LabelPartition(Frozen):
    """Label skew: cases are binned by foreground volume, and each bin is split by a Dirichlet draw."""

    method: Literal["label"]
    sites: PositiveInt
    alpha: PositiveFloat = 0.5
    bins: Annotated[int, Field(ge=2)] = 4
    minimum: Annotated[int, Field(ge=2)] = 5
    validation_fraction: OpenFraction = 0.2


class ScannerPartition(Frozen):
    """Equal shares; each site's images are changed to imitate a different scanner.

    ``shifts`` has one entry per site; by default they are drawn from the seed with the given ``strength``.
    """

    method: Literal["scanner"]
    sites: PositiveInt
    strength: Annotated[float, Field(gt=0, le=3)] = 1.0
    shifts: tuple[ScannerShift, ...] | None = None
    validation_fraction: OpenFraction = 0.2

    @model_validator(mode="after")
    def _one_shift_per_site(self) -> Self:
        if self.shifts is not None and len(self.shifts) != self.sites:
            raise ValueError(f"shifts has {len(self.shifts)} entries, sites is {self.sites}")
        return self


Partition = Annotated[
    ColumnPartition | IidPartition | QuantityPartition | LabelPartition | ScannerPartition,
    Field(discriminator="method"),
]


class PatientTable(Frozen):
    """A CSV file in the dataset folder that says which cases are scans of the same patient.

    By default ``patients.csv`` is used if it exists (``common.imaging.datasets.patients_csv``).
    """

    file: str
    column: str = "patient"
    case_column: str = "case"


class PhantomConfig(Frozen):
    """Synthetic volumes, used when no real data is given; they are marked PHANTOM wherever they appear.

    Attributes
    ----------
    anatomy
        ``body`` is an abdomen with three labels, for demonstrations. ``bent_tube`` is a synthetic hippocampus, a tube
        of about 40 mm in two parts (1 anterior, 2 posterior), for pretraining.
    shape
        Voxels of a case at ``spacing_mm``; the sites' own voxel sizes vary around it.
    """

    anatomy: Literal["body", "bent_tube"] = "body"
    cases_per_site: tuple[Annotated[int, Field(ge=2)], ...] = (14, 12, 10, 8)
    shape: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] = (
        40,
        48,
        40,
    )
    spacing_mm: Annotated[float, Field(ge=0.2, le=5)] = 2.0
    seed: Annotated[int, Field(ge=0)] = 0


class SimulationConfig(Frozen):
    """Settings for simulations only.

    ``pooled`` also trains one model on the pooled data for comparison (as many steps as all sites together).
    """

    partition: Partition
    patients: PatientTable | None = None
    engine: Literal["inline", "ray"] = "inline"
    pooled: bool = False
    phantom: PhantomConfig | None = None


class FederationConfig(Frozen):
    """A whole federation file.

    Attributes
    ----------
    labels
        Value in the label maps -> name, foreground only; by default the dataset's own.
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

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    description: str = ""
    labels: dict[PositiveInt, str] | None = None
    channels: tuple[str, ...] | None = None
    modality: Literal["CT", "MR", "other"] = "MR"
    rounds: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    strategy: StrategyConfig = StrategyConfig()
    early_stop: EarlyStop | None = None
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    initial_model: Annotated[str, Field(min_length=1)] | None = None
    initial_model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
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
    def _few_sites_are_a_choice(cls, content: Any) -> Any:
        return with_least_sites(content) if isinstance(content, dict) else content

    @model_validator(mode="after")
    def _strategy_fits_the_sites(self) -> Self:
        if self.network is None:
            return self
        check_least_sites(self.strategy.min_sites, len(self.network.sites))
        counts = self.strategy.weights
        if isinstance(counts, dict) and (differing := set(counts) ^ set(self.network.sites)):
            names = ", ".join(sorted(differing))
            raise ValueError(f"strategy.weights must name every site of network.sites and no other; see {names}")
        return self

    @model_validator(mode="after")
    def _privacy_allows_the_rest(self) -> Self:
        if self.privacy is None:
            return self
        if self.early_stop is not None and self.privacy.validation == "off":
            raise ValueError("early_stop needs scores, and privacy.validation is off; remove one of them")
        return self

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
        _apply_override(content, override)
    # Paths on the command line are relative to the working directory, paths in the file to the file.
    typed = any(override.partition("=")[0].strip() == "initial_model" for override in overrides)
    resolve_initial_model(content, path, Path.cwd() if typed else path.parent)
    try:
        return FederationConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, FederationConfig, str(path))) from None


def _apply_override(content: dict[Any, Any], override: str) -> None:
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
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
