"""The ``simulation`` section of a federation file: where simulated sites' cases come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from common.formatting import counted
from common.plan.base import Frozen, OpenFraction, PositiveFloat, PositiveInt, Real, Switch, Whole
from common.plan.scanner_shift import ScannerShift


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
    alpha: Annotated[Real, Field(ge=0.001, le=1e6)] = 0.5
    minimum: Annotated[PositiveInt, Field(ge=2)] = 5
    validation_fraction: OpenFraction = 0.2


ShiftStrength = Annotated[PositiveFloat, Field(le=3)]


class LabelPartition(Frozen):
    """Label skew: cases are binned by foreground volume, and each bin is split by a Dirichlet draw.

    With ``strength``, each site's images also imitate a different scanner, as in ``ScannerPartition``. None is not
    written out: digests of federations without it stay as they were.
    """

    method: Literal["label"]
    sites: PositiveInt
    alpha: Annotated[Real, Field(ge=0.001, le=1e6)] = 0.5
    bins: Annotated[PositiveInt, Field(ge=2)] = 4
    minimum: Annotated[PositiveInt, Field(ge=2)] = 5
    strength: ShiftStrength | None = None
    validation_fraction: OpenFraction = 0.2

    @model_serializer(mode="wrap")
    def _strength_if_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


class ScannerPartition(Frozen):
    """Equal shares; each site's images are changed to imitate a different scanner.

    ``shifts`` has one entry per site; by default they are drawn from the seed with the given ``strength``.
    """

    method: Literal["scanner"]
    sites: PositiveInt
    strength: ShiftStrength = 1.0
    shifts: tuple[ScannerShift, ...] | None = None
    validation_fraction: OpenFraction = 0.2

    @model_validator(mode="after")
    def _one_shift_per_site(self) -> Self:
        if self.shifts is not None and len(self.shifts) != self.sites:
            raise ValueError(f"shifts has {counted(len(self.shifts), 'entry', 'entries')}, sites is {self.sites}")
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


_PhantomCases = Annotated[Whole, Field(ge=2, le=10_000)]
_PhantomEdge = Annotated[Whole, Field(ge=16, le=1024)]


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
    cases_per_site: Annotated[tuple[Annotated[Whole, Field(ge=2, le=10_000)], ...], Field(min_length=1)] = (
        14,
        12,
        10,
        8,
    )
    shape: tuple[_PhantomEdge, _PhantomEdge, _PhantomEdge] = (40, 48, 40)
    spacing_mm: Annotated[Real, Field(ge=0.2, le=5)] = 2.0
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 0


class SimulationConfig(Frozen):
    """Settings for simulations only.

    Attributes
    ----------
    engine
        ``inline`` runs one site after another in one process, ``ray`` several at once on a machine or cluster.
    cpus_per_site, gpus_per_site
        Of engine ``ray``: processor cores and GPUs (or a fraction of one) for each site at work; how many are at work
        at once follows. By default all that there is, in equal parts.
    pooled
        Also train one model on the pooled data for comparison (as many steps as all sites together).
    keep_updates_gb
        Most space, in 10^9 bytes, for the updates that the run keeps, so that ``fedvox-server contributions`` can tell
        what each site added; 0 keeps none. A round takes 4 bytes for each weight of the model, times the number of
        sites and one more. If not all rounds fit, every second is kept, or every third, and so on.
    """

    partition: Partition
    patients: PatientTable | None = None
    engine: Literal["inline", "ray"] = "inline"
    cpus_per_site: Annotated[PositiveFloat, Field(le=1024)] | None = None
    gpus_per_site: Annotated[Real, Field(ge=0, le=64)] | None = None
    pooled: Switch = False
    keep_updates_gb: Annotated[Real, Field(ge=0, le=100_000)] = 0.0
    phantom: PhantomConfig | None = None

    @field_validator("gpus_per_site")
    @classmethod
    def _whole_gpus(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("must be a fraction of one GPU, or a whole number of them")
        return gpus
