"""What a site shares of its data before there is a kit: measured, summed up, put into words and signed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.consent.site_config import SiteConfig
from client.runner.site_split import labelled_cases
from client.site.earlier_fingerprints import Made, check_against_earlier, hash_patients, remember
from common.certificates import SITE_KEY_FILE, load_key
from common.config.federation import FederationConfig
from common.errors import ConfigError, DataError
from common.formatting import counted, visible
from common.imaging.datasets.comparison import Wanted
from common.imaging.threads import CountProgress
from common.planning.fingerprint_file import FingerprintFile
from common.planning.histogram import Distribution, Scale
from common.planning.resolve import open_settings
from common.planning.shared_fingerprint import fingerprint_to_share


@dataclass(frozen=True)
class NewFingerprint:
    """A fingerprint that is not written yet.

    Attributes
    ----------
    file
        What is to be sent.
    patients
        As in ``client.site.earlier_fingerprints.Made``; they stay here.
    """

    file: FingerprintFile
    patients: tuple[str, ...]

    def remember(self, key_folder: Path, path: Path) -> None:
        """Note beside the site's key that it is written to ``path``; errors as in ``earlier_fingerprints.remember``."""
        remember(
            key_folder,
            Made(
                made_at=self.file.made_at,
                path=visible(str(path.absolute())),
                minimum_cell=self.file.fingerprint.minimum_cell,
                patients=self.patients,
            ),
        )


def make_fingerprint(
    config: FederationConfig,
    site: str,
    data: Path,
    key_folder: Path,
    terms: SiteConfig,
    progress: CountProgress | None = None,
) -> NewFingerprint:
    """Sum up a site's data for the federation that asks, and sign it.

    Parameters
    ----------
    config
        The federation file, with what it leaves ``auto``.
    site
        Name of the site.
    data
        The dataset folder.
    key_folder
        Folder with the site's key, from ``fedvox-client request``.
    terms
        The hospital's site file: its limits, ``minimum_cell``, and how its data is read.
    progress
        Called with (cases done, total cases).

    Raises
    ------
    ConfigError
        The site file does not allow the federation, or pauses the site; the federation needs no fingerprint, or none of
        this site; or the site has too few patients to share anything, or an earlier one differs by too few.
    CertificateError
        The key is missing or cannot be used.
    DamagedFileError
        The record of earlier fingerprints is damaged.
    DataError
        A case cannot be used.
    """
    if reasons := terms.reasons_against(config):
        raise ConfigError(f"federation {config.name}: gets no fingerprint: {'; '.join(reasons)}")
    asked = open_settings(config)
    if not asked:
        raise ConfigError(f"federation {config.name}: leaves nothing auto and needs no fingerprint; share none")
    sites = config.network.sites if config.network else ()
    if site not in sites:
        raise ConfigError(f"--name {site}: is no site of the federation (network.sites: {', '.join(sites) or 'none'})")
    key = load_key(key_folder / SITE_KEY_FILE, "make a new one with fedvox-client request")
    channels, labels = config.channels or (), config.label_names or {}
    cases = list(
        labelled_cases(
            data, Wanted.of(config.label_names, config.label_codes, config.channels, config.modality), terms.data_terms
        ).values()
    )
    patients = hash_patients(cases, key)
    check_against_earlier(key_folder, patients, terms.minimum_cell)
    found = fingerprint_to_share(
        cases,
        len(labels),
        terms.minimum_cell,
        "preprocessing.intensity" in asked,
        os.cpu_count() or 1,
        progress,
    )
    if found.channels != len(channels):
        raise DataError(data, f"has {counted(found.channels, 'channel')}, and the federation wants {len(channels)}")
    file = FingerprintFile(
        federation=config.name,
        site=site,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        channels=channels,
        labels=labels,
        modality=config.modality,
        fingerprint=found,
    )
    return NewFingerprint(file.signed(key), patients)


def in_words(file: FingerprintFile) -> Iterator[str]:
    """Say line by line what a fingerprint shares."""
    found = file.fingerprint
    yield f"{counted(found.cases, 'labelled case')}; a cell of fewer than {found.minimum_cell} patients is not shown."
    for (_, label), is_found in zip(sorted(file.labels.items()), found.labels_found, strict=True):
        yield f"{label}: in {'at least' if is_found else 'fewer than'} {found.minimum_cell} patients"
    names = [
        *(f"voxel size along {axis}" for axis in "xyz"),
        *(f"edge of the volume along {axis}" for axis in "xyz"),
        *(f"intensity of {channel} within the labels" for channel in file.channels),
    ]
    for name, (_, item, scale) in zip(names, found.parts(), strict=False):
        yield f"{name}: {_cells(item, scale)}"


def _cells(item: Distribution, scale: Scale) -> str:
    parts = [f"{count:,} in {_cell(edge, scale)}" for edge, count in item.cells]
    if item.suppressed:
        parts.append(f"{item.suppressed:,} not shown")
    if item.total is None:
        return f"{'; '.join(parts)}; sums withheld"
    mean, std = item.mean(scale), item.std(scale)
    return f"{'; '.join(parts)}; mean {mean:.4g}, standard deviation {std:.3g} {scale.unit}"


def _cell(edge: float, scale: Scale) -> str:
    number = scale.edges.index(edge)
    if scale.typical:
        return f"about {scale.typical[number]:g} {scale.unit}"
    return f"{edge:g} to {scale.edges[number + 1]:g} {scale.unit}"
