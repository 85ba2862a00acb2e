"""The federation file: what a federation wants, checked before anything runs.

Every error names the file, the key, the value and what is allowed. Defaults are the ones we measured to work;
``resolved`` writes all of them out, so that a run folder says everything about its run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from common.config.describe_errors import describe_validation_error
from common.config.initial_model import resolve_initial_model
from common.config.network import NetworkConfig
from common.config.privacy import PrivacyConfig
from common.errors import ConfigError
from common.plan.augmentation import AugmentationPlan
from common.plan.base import Frozen, Kernel, PositiveInt, Spacing, Stride
from common.plan.plan import IntensityPlan
from common.plan.scanner_shift import ScannerShift

Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PhantomEdge = Annotated[int, Field(ge=16, le=256)]


class PreprocessingConfig(Frozen):
    """Preprocessing as asked for; ``auto`` is resolved from the dataset's fingerprint (simulation only).

    Attributes
    ----------
    spacing
        target spacing in mm along x, y, z; ``keep`` leaves every volume on its own grid.
    intensity
        ``auto``, or one entry for all channels, or one per channel.
    """

    spacing: Literal["auto", "keep"] | Spacing = "auto"
    intensity: Literal["auto"] | tuple[IntensityPlan, ...] = "auto"
    image_order: Literal[1, 3] = 3
    label_mode: Literal["nearest", "linear"] = "linear"
    anisotropy: float = Field(default=3.0, gt=1)
    crop: Literal["nonzero", "none"] = "nonzero"


class ModelConfig(Frozen):
    """The network as asked for; ``auto`` is resolved from spacing and volume size."""

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
    """One site's local training.

    Attributes
    ----------
    local_steps
        optimisation steps per site and round.
    learning_rate
        at the first step of the first round; it decays as (1 - step / total) ** ``poly_power`` over the whole
        federation.
    weight_decay, momentum
        of AdamW (betas 0.9, 0.999) and of SGD (Nesterov).
    gradient_clip
        largest L2 norm of the gradient; 0 switches clipping off.
    loss
        ``dice_ce``, ``focal`` or ``tversky``.
    class_weights
        one per class, background first.
    foreground_fraction
        share of patches that are centred on a labelled voxel.
    precision
        of the forward and backward pass; ``auto`` takes bfloat16 where the processor computes in it.
    compile
        torch.compile the network (pays on GPUs for long runs; needs a C compiler at the site).
    workers
        background threads that prepare patches.
    trainable
        part of the network that sites train (see ``common.models.trainable``); the rest stays as it starts.
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
    """Stop when the mean validation Dice has not risen by ``min_delta`` for ``patience`` rounds."""

    patience: PositiveInt = 5
    min_delta: NonNegativeFloat = 0.001


class StrategyConfig(Frozen):
    """How updates become a model.

    Attributes
    ----------
    name
        ``fedavg`` weighs sites by their training patients.
    min_sites, min_fraction
        a round with fewer accepted updates, or a smaller share of the sites that take part, leaves the model as it
        was.
    max_failed_rounds
        so many such rounds in a row end the run.
    """

    name: Literal["fedavg"] = "fedavg"
    min_sites: PositiveInt = 1
    min_fraction: Fraction = 0.0
    max_failed_rounds: PositiveInt = 3


class TransportConfig(Frozen):
    """How weights travel (see ``common.weights.encoding``).

    Attributes
    ----------
    upload
        of a site's update; ``bfloat16`` is half of float32, ``int8`` about a quarter, both with error feedback.
    download
        of the global model to a site.
    """

    upload: Literal["float32", "bfloat16", "int8"] = "float32"
    download: Literal["float32", "bfloat16"] = "float32"


class ColumnPartition(Frozen):
    """One site per value of a CSV column; the file lies in the dataset folder."""

    method: Literal["column"]
    file: str
    column: str
    case_column: str = "case"
    validation_fraction: OpenFraction = 0.2


class IidPartition(Frozen):
    """Equal shares, drawn at random."""

    method: Literal["iid"]
    sites: PositiveInt
    validation_fraction: OpenFraction = 0.2


class QuantityPartition(Frozen):
    """Unequal shares: sizes from a Dirichlet distribution; a small ``alpha`` makes them more unequal."""

    method: Literal["quantity"]
    sites: PositiveInt
    alpha: PositiveFloat = 0.5
    minimum: Annotated[int, Field(ge=2)] = 5
    validation_fraction: OpenFraction = 0.2


class LabelPartition(Frozen):
    """Label skew: cases are binned by foreground volume, and each bin is shared out by a Dirichlet draw."""

    method: Literal["label"]
    sites: PositiveInt
    alpha: PositiveFloat = 0.5
    bins: Annotated[int, Field(ge=2)] = 4
    minimum: Annotated[int, Field(ge=2)] = 5
    validation_fraction: OpenFraction = 0.2


class ScannerPartition(Frozen):
    """Equal shares, and every site's images are changed as another scanner would.

    Attributes
    ----------
    shifts
        one entry per site; left out, they are drawn from the seed with the given ``strength``.
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

    Left out, ``patients.csv`` is taken if it is there (``common.imaging.datasets.patients_csv``).
    """

    file: str
    column: str = "patient"
    case_column: str = "case"


class PhantomConfig(Frozen):
    """Synthetic volumes, made when no real data is given; they say PHANTOM wherever they appear.

    Attributes
    ----------
    anatomy
        ``body``, an abdomen with three labels, for demonstrations; or ``bent_tube``, a tube of about 40 mm in two
        parts (1 anterior, 2 posterior) as a stand-in for the hippocampus, to start other federations from.
    shape
        voxels of a case at ``spacing_mm``, about which the sites' own voxels vary.
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
    """What only a simulation needs.

    Attributes
    ----------
    pooled
        also train one model on all data in one place (as many steps as all sites together), for comparison.
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
        value in the label maps -> name; foreground only. Left out, the dataset's own are taken.
    channels
        names of the input channels. Left out, the dataset's own are taken.
    modality
        ``CT`` clips to a Hounsfield window over the foreground, all else to percentiles of each volume.
    initial_model
        folder of a model (a bundle) that the first round starts from; in the file relative to it. Sites do not need
        it: the weights come with the first round. Left out, weights are drawn from the seed.
    initial_model_sha256
        of its weights file; filled in when the file is read, so that the digest holds it.
    privacy
        left out, training is not differentially private.
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

    @model_validator(mode="after")
    def _privacy_allows_the_rest(self) -> Self:
        if self.privacy is None:
            return self
        if self.early_stop is not None and self.privacy.validation == "off":
            raise ValueError("early_stop needs scores, and privacy.validation is off; remove one of them")
        return self

    def resolved(self) -> str:
        """The configuration as YAML with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def digest(self) -> str:
        """SHA-256 over all that decides the result: equal digests mean equal federations."""
        # The initial model's hash decides, not the place where it happens to lie.
        content = self.model_dump(mode="json", exclude={"description": True, "initial_model": True})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's own rule, which PyYAML does not hold: a key stands once in a mapping."""


def _mapping_of_unique_keys(loader: UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for position, key in enumerate(keys):
        if key in keys[:position]:
            line = node.value[position][0].start_mark.line + 1
            raise ConfigError(f"line {line}: the key {key!r} stands twice in the same mapping; keep one of them")
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_of_unique_keys)


def load_federation(path: Path, overrides: Sequence[str] = ()) -> FederationConfig:
    """Reads and checks a federation file.

    Parameters
    ----------
    path
        the YAML file.
    overrides
        ``key.path=value`` items that replace single values; a value is read as YAML.

    Raises
    ------
    ConfigError
        the file cannot be read, is not YAML, or a key, type or range is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; give the path of a federation file (examples: deploy/examples)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        content = yaml.load(text, Loader=UniqueKeyLoader)  # noqa: S506 -- a SafeLoader that refuses duplicate keys
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping of keys such as name, rounds, training")
    for override in overrides:
        _apply_override(content, override)
    # What a person writes on the command line starts where that person is, what stands in a file starts at the file.
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
    try:
        value = yaml.load(text, Loader=UniqueKeyLoader)  # noqa: S506 -- a SafeLoader that refuses duplicate keys
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    place = content
    for key in keys[:-1]:
        below = place.get(key)
        if below is None:
            below = place[key] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: {key} is a single value and has no keys below it")
        place = below
    place[keys[-1]] = value


def as_json(model: BaseModel | Mapping[str, Any]) -> str:
    """Readable JSON of a model or a mapping, with a final newline."""
    content = model.model_dump(mode="json") if isinstance(model, BaseModel) else model
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
