"""The site file: what one hospital allows, whatever a federation asks for.

``site.yaml`` belongs to the hospital. It is read from the hospital's own state folder, never from the coordinator's
kit: a kit must not be able to grant itself permissions.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from common.config.federation import FederationConfig
from common.config.personal import own_steps
from common.config.yaml_file import read_yaml
from common.errors import ConfigError
from common.imaging.datasets.bids.rules import USUAL_BIDS, BidsRules
from common.imaging.datasets.name_rule import compile_rule
from common.imaging.io.dicom.rules import USUAL_RULES, DicomRules
from common.imaging.ranges import USUAL_RANGES, GeometryRanges
from common.plan.base import Frozen, MinimumCell, PositiveInt, Real, Switch
from common.plan.describe_errors import describe_validation_error

if TYPE_CHECKING:
    from common.imaging.datasets.comparison import SiteTerms

SITE_FILE = "site.yaml"
PAUSED_HERE = "paused in the site file; set paused: false to go on"
OUTSIDE_LIMITS = "outside the site file's limits: "
_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")


class Limits(Frozen):
    """Limits on what a federation may ask for; an omitted limit allows everything.

    Limits apply to every task, even of a federation that a person approved.

    Attributes
    ----------
    max_rounds
        Rounds of the whole federation.
    max_local_steps
        Training steps per round, of all models together.
    federations
        Names of federations.
    labels
        Names of structures.
    channels
        Names of input channels.
    automatic_approval
        A federation within the limits needs no ``fedvox-client approve``.
    """

    max_rounds: PositiveInt | None = None
    max_local_steps: PositiveInt | None = None
    federations: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    channels: tuple[str, ...] | None = None
    automatic_approval: Switch = False

    @model_validator(mode="after")
    def _automatic_needs_bounds(self) -> Self:
        needed = ("federations", "max_rounds", "max_local_steps")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.automatic_approval and missing:
            raise ValueError(f"automatic_approval needs bounds: add {', '.join(missing)}")
        return self

    def violations(self, federation: FederationConfig) -> list[str]:
        """List what a federation asks for beyond these limits, one sentence each."""
        found = []
        if self.federations is not None and federation.name not in self.federations:
            found.append(f"federation {federation.name!r} is not among limits.federations")
        if self.max_rounds is not None and federation.rounds > self.max_rounds:
            found.append(f"{federation.rounds} rounds are more than limits.max_rounds ({self.max_rounds})")
        local_steps = federation.training.local_steps
        steps = local_steps + own_steps(federation.personal, local_steps)
        if self.max_local_steps is not None and steps > self.max_local_steps:
            found.append(
                f"{steps} training steps a round are more than limits.max_local_steps ({self.max_local_steps})"
            )
        found += _strangers("labels", self.labels, (federation.label_names or {}).values())
        found += _strangers("channels", self.channels, federation.channels or ())
        return found


class SitePrivacy(Frozen):
    """Limits on the privacy cost to a hospital's patients, over all federations.

    Attributes
    ----------
    required
        A federation without differential privacy is refused.
    max_epsilon
        Largest epsilon of any one patient over everything in the ledger; if omitted, costs are recorded but not
        limited.
    delta
        The delta at which ``max_epsilon`` applies, whatever a federation's own delta.
    share_personal_score
        The Dice of the site's personal model (``personal`` in a federation file) is sent beside the global model's.
    """

    required: Switch = False
    max_epsilon: Annotated[Real, Field(gt=0, le=1000)] | None = None
    delta: Annotated[Real, Field(gt=0, lt=0.01)] = 1e-5
    share_personal_score: Switch = False

    def violations(self, federation: FederationConfig) -> list[str]:
        """List the reasons to refuse a federation before anything is spent, one sentence each."""
        if self.required and federation.privacy is None:
            return ["the site file requires differential privacy (privacy.required), and this federation uses none"]
        return []


def _written_time(value: object) -> object:
    return f"0{value}" if isinstance(value, str) and value[1:2] == ":" else value


def _check_time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError('must be a time of day such as "20:00"')
    return text


def _check_rule(text: str) -> str:
    compile_rule(text)
    return text


TimeOfDay = Annotated[str, BeforeValidator(_written_time), AfterValidator(_check_time)]


class SiteNetwork(Frozen):
    """Limits on large files: how much of the hospital's bandwidth they may use, and when.

    Attributes
    ----------
    max_megabits
        Largest rate of models and updates together, in 10^6 bits per second; no limit if omitted.
    large_files_between
        Start and end of the hours when models and updates may be transferred, in this machine's local time; may cross
        midnight. Any time if omitted. Small messages are never delayed.
    """

    max_megabits: Annotated[Real, Field(ge=0.1, le=1_000_000)] | None = None
    large_files_between: tuple[TimeOfDay, TimeOfDay] | None = None

    @model_validator(mode="after")
    def _some_time_is_left(self) -> Self:
        if self.large_files_between is not None and len(set(self.large_files_between)) == 1:
            raise ValueError("large_files_between must name two different times; leave it out for no limit")
        return self

    @property
    def hours(self) -> tuple[time, time] | None:
        """``large_files_between`` as times; None for no limit."""
        if self.large_files_between is None:
            return None
        start, end = (time.fromisoformat(text) for text in self.large_files_between)
        return start, end


class SiteConfig(Frozen):
    """A whole site file; without one, every federation needs a person's approval and nothing is limited.

    Attributes
    ----------
    limits
        See ``Limits``.
    privacy
        See ``SitePrivacy``.
    network
        See ``SiteNetwork``.
    geometry
        What the geometry of a scan may be (``common.imaging.ranges``).
    dicom
        How DICOM is read (``common.imaging.io.dicom.rules``).
    bids
        Which label maps of BIDS are read (``common.imaging.datasets.bids.rules``).
    labels_map, channels_map
        Name in the hospital's dataset -> name in the federation, of labels and of channels that differ; a label may
        become ``background``.
    minimum_cell
        Fewest patients in a cell of a fingerprint that is shown (``common.planning.shared_fingerprint``).
    paused
        No task is done while this is true (``fedvox-client pause`` does the same without editing a file).
    validation_cases
        Names of the cases used to score models and never trained on; null draws them.
    patient_from_name
        Regular expression that finds the patient in a case's name (``common.imaging.datasets.name_rule``); used where
        the dataset folder has no ``patients.csv``.
    """

    limits: Limits = Limits()
    privacy: SitePrivacy = SitePrivacy()
    network: SiteNetwork = SiteNetwork()
    geometry: GeometryRanges = USUAL_RANGES
    dicom: DicomRules = USUAL_RULES
    bids: BidsRules = USUAL_BIDS
    labels_map: dict[str, str] = Field(default_factory=dict)
    channels_map: dict[str, str] = Field(default_factory=dict)
    minimum_cell: MinimumCell = 5
    paused: Switch = False
    validation_cases: tuple[str, ...] | None = None
    patient_from_name: Annotated[str, AfterValidator(_check_rule)] | None = None

    def reasons_against(self, federation: FederationConfig) -> list[str]:
        """List why a federation gets nothing from this hospital before anybody has decided, one sentence each."""
        found = [PAUSED_HERE] if self.paused else []
        found += self.privacy.violations(federation)
        if violations := self.limits.violations(federation):
            found.append(OUTSIDE_LIMITS + "; ".join(violations))
        return found

    @property
    def patient_rule(self) -> re.Pattern[str] | None:
        """``patient_from_name``, compiled."""
        return None if self.patient_from_name is None else compile_rule(self.patient_from_name)

    @property
    def data_terms(self) -> SiteTerms:
        """What this file says about the hospital's data."""
        # Late: the half without scans reads this file too, and needs no imaging.
        from common.imaging.datasets.comparison import SiteTerms

        return SiteTerms(self.geometry, self.labels_map, self.channels_map, self.patient_rule, self.dicom, self.bids)

    @model_validator(mode="after")
    def _cases_once(self) -> Self:
        cases = self.validation_cases
        if cases is not None and (not cases or len(set(cases)) != len(cases)):
            raise ValueError("validation_cases must name at least one case, and each only once")
        return self


def load_site_config(path: Path) -> SiteConfig:
    """Read and check a site file; a missing file means all defaults.

    Raises
    ------
    ConfigError
        The file cannot be read, is not YAML, or has a wrong key, type or range.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        return SiteConfig()
    if content is None:
        return SiteConfig()
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping with the keys {', '.join(SiteConfig.model_fields)}")
    try:
        return SiteConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, SiteConfig, str(path))) from None


def _strangers(kind: str, allowed: tuple[str, ...] | None, asked: Collection[str]) -> list[str]:
    if allowed is None:
        return []
    if not asked:
        return [f"the federation does not name its {kind}, so limits.{kind} cannot be checked"]
    return [f"{kind[:-1]} {name!r} is not among limits.{kind}" for name in asked if name not in allowed]
