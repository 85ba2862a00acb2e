"""``node.yaml``: who may send, what is segmented, and where results go."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, IPvAnyAddress, ValidationError, model_validator

from client.consent.site_config import SiteConfig, load_site_config
from client.node.outbox import Patience
from client.pacs.address import ArchiveAddress, Port, Title
from common.config.yaml_file import read_yaml
from common.errors import ConfigError
from common.imaging.io.dicom.rules import DicomRules
from common.imaging.ranges import GeometryRanges
from common.plan.base import Frozen, PositiveInt, Real, Switch, Whole
from common.plan.describe_errors import describe_validation_error

if TYPE_CHECKING:
    from client.pacs.receiver import ReceiverSettings
    from common.imaging.datasets.comparison import SiteTerms

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NOT_HERE = ("study_seconds", "attempts", "pause_seconds")
Seconds = Annotated[Real, Field(ge=0.1, le=86_400)]


def _check_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("must be letters, digits, - and _, at most 64")
    return text


class Caller(Frozen):
    """A system that may send.

    Attributes
    ----------
    ae_title
        How it calls itself.
    addresses
        Addresses or networks that it calls from, such as ``10.1.2.3`` or ``10.1.2.0/24``.
    """

    ae_title: Title
    addresses: Annotated[tuple[IPv4Network | IPv6Network, ...], Field(min_length=1)]


class NodeTls(Frozen):
    """Files in PEM, beside ``node.yaml``.

    Attributes
    ----------
    certificate, key
        Ours.
    ca
        Certificates that those of callers are checked against; without one, nobody gets in.
    """

    certificate: str
    key: str
    ca: str


class Destination(ArchiveAddress):
    """Where results go: keys as in ``pacs.yaml``, and a name.

    Attributes
    ----------
    name
        For messages and the state folder.
    """

    name: Annotated[str, AfterValidator(_check_name)]

    @model_validator(mode="after")
    def _patience_is_elsewhere(self) -> Self:
        if unused := [key for key in _NOT_HERE if key in self.model_fields_set]:
            raise ValueError(f"has no {unused[0]}: see retry")
        return self


class Retry(Frozen):
    """How long sending is tried.

    Attributes
    ----------
    first_pause_seconds, longest_pause_seconds
        Between attempts: doubled from the first to the longest.
    give_up_hours
        Age of a result from which on the next failure sets it aside.
    """

    first_pause_seconds: Seconds = 10.0
    longest_pause_seconds: Seconds = 900.0
    give_up_hours: Annotated[Real, Field(ge=0, le=8760)] = 72.0

    @property
    def patience(self) -> Patience:
        """The same, for an outbox."""
        return Patience(self.first_pause_seconds, self.longest_pause_seconds, 3600 * self.give_up_hours)


class NodeLimits(Frozen):
    """How much may come.

    Attributes
    ----------
    associations
        At the same time.
    instance_megabytes
        Size of an instance, in 10^6 bytes.
    pdu_bytes
        Longest PDU, as announced.
    waiting_studies
        Studies that may come and wait; another one is refused.
    free_gigabytes
        Part of the disk that is left free, in 10^9 bytes; what does not fit is refused.
    idle_seconds
        Until a silent caller is dropped.
    """

    associations: Annotated[Whole, Field(ge=1, le=200)] = 10
    instance_megabytes: Annotated[Whole, Field(ge=1, le=4000)] = 512
    pdu_bytes: Annotated[Whole, Field(ge=4096, le=2**20)] = 2**18
    waiting_studies: PositiveInt = 500
    free_gigabytes: Annotated[Real, Field(ge=0, le=1e9)] = 5.0
    idle_seconds: Seconds = 60.0


class Inference(Frozen):
    """How the model is applied, as the options of ``predict``."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    overlap: Annotated[Real, Field(ge=0, le=0.9)] = 0.5
    mirror: Switch = False


class Results(Frozen):
    """What is written for each series.

    Attributes
    ----------
    segmentation
        Kind of the DICOM-SEG.
    report
        A structured report with the size of each structure too.
    """

    segmentation: Literal["binary", "labelmap", "fractional"] = "binary"
    report: Switch = True


class Segmenting(Frozen):
    """What the process that segments is told: it knows no callers, addresses and tokens.

    Attributes
    ----------
    inference, results
        See there.
    destinations
        Names of those that get results; none in shadow mode.
    geometry, dicom
        How scans are read, as the hospital's site file says.
    """

    inference: Inference
    results: Results
    destinations: tuple[str, ...]
    geometry: GeometryRanges
    dicom: DicomRules


class NodeConfig(Frozen):
    """A whole ``node.yaml``.

    Attributes
    ----------
    ae_title, address, port
        Ours; the address is one of this machine, by default all.
    callers
        Who may send.
    tls
        For DICOM TLS; without it, plain DICOM.
    state
        Folder for studies and results.
    site
        The hospital's ``site.yaml``, for its ranges of voxel sizes, and for rules for DICOM if ``dicom`` is missing.
    settle_seconds
        A study is complete when nothing came for so long.
    dicom
        Which series are segmented, and how they are read; without it, as the site file says.
    inference, results, retry, limits
        See there.
    destinations
        Where results go.
    shadow
        Results are made and kept here, and nothing is sent.
    keep_days
        Studies that are done, and what was sent, are removed after so many days.
    """

    ae_title: Title
    address: IPvAnyAddress = IPv4Address(0)
    port: Port = 11112
    callers: Annotated[tuple[Caller, ...], Field(min_length=1)]
    tls: NodeTls | None = None
    state: str = "state"
    site: str | None = None
    settle_seconds: Seconds = 60.0
    dicom: DicomRules | None = None
    inference: Inference = Inference()
    results: Results = Results()
    destinations: tuple[Destination, ...] = ()
    shadow: Switch = False
    retry: Retry = Retry()
    limits: NodeLimits = NodeLimits()
    keep_days: Annotated[Real, Field(gt=0, le=3650)] = 7.0

    @model_validator(mode="after")
    def _results_go_somewhere(self) -> Self:
        if not self.destinations and not self.shadow:
            raise ValueError("needs destinations, or shadow: true to send nothing")
        names = [one.name for one in self.destinations]
        if len(set(names)) < len(names):
            raise ValueError("destinations: each needs a name of its own")
        return self


@dataclass(frozen=True)
class Node:
    """A checked ``node.yaml``, and where it lies.

    Attributes
    ----------
    config
        Its content.
    folder
        Its folder; paths in it begin here.
    """

    config: NodeConfig
    folder: Path

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.folder / self.config.state

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """Where results go; none in shadow mode."""
        return () if self.config.shadow else self.config.destinations

    @property
    def data_terms(self) -> SiteTerms:
        """How scans are read.

        Raises
        ------
        ConfigError
            The site file is missing or cannot be used.
        """
        site = SiteConfig()
        if self.config.site is not None:
            path = self.folder / self.config.site
            if not path.is_file():
                raise ConfigError(f"site: {path}: there is no such file")
            site = load_site_config(path)
        terms = site.data_terms
        return terms if self.config.dicom is None else replace(terms, dicom=self.config.dicom)

    @property
    def segmenting(self) -> Segmenting:
        """What concerns the process that segments.

        Raises
        ------
        ConfigError
            The site file is missing or cannot be used.
        """
        terms = self.data_terms
        return Segmenting(
            inference=self.config.inference,
            results=self.config.results,
            destinations=tuple(one.name for one in self.destinations),
            geometry=terms.ranges,
            dicom=terms.dicom,
        )

    @property
    def receiver(self) -> ReceiverSettings:
        """How to listen.

        Raises
        ------
        ConfigError
            A file for TLS cannot be used.
        """
        # Late: these import pynetdicom.
        from client.pacs.bounded_socket import server_context
        from client.pacs.receiver import AllowedPeer, ReceiverSettings

        config, limits = self.config, self.config.limits
        tls = None
        if config.tls is not None:
            tls = server_context(
                *(self.folder / name for name in (config.tls.certificate, config.tls.key, config.tls.ca))
            )
        return ReceiverSettings(
            config.ae_title,
            str(config.address),
            config.port,
            tuple(AllowedPeer(caller.ae_title, caller.addresses) for caller in config.callers),
            tls=tls,
            longest_pdu=limits.pdu_bytes,
            most_associations=limits.associations,
            largest_instance=limits.instance_megabytes * 10**6,
            timeout_seconds=limits.idle_seconds,
        )


def load_node(path: Path) -> Node:
    """Read and check ``node.yaml``.

    Raises
    ------
    ConfigError
        It is missing, or a key in it is wrong.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping with keys such as ae_title, callers and destinations")
    try:
        return Node(NodeConfig.model_validate(content), path.absolute().parent)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, NodeConfig, str(path))) from None
