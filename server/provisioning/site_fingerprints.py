"""What a federation file leaves ``auto``, chosen from the fingerprints of all sites before any kit is made.

Received fingerprints are kept in ``authority/fingerprints``, so that provisioning again chooses the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from common.certificates import key_of
from common.config.chosen import CHOSEN_FILE, Chosen
from common.config.federation import FederationConfig, as_json
from common.errors import ConfigError, OutputError
from common.formatting import counted
from common.imaging.resampling import thick_axes
from common.planning.fingerprint_file import FingerprintFile, read_fingerprint
from common.planning.histogram import EXTENT, HOUNSFIELD, SPACING
from common.planning.planner import THICK
from common.planning.resolve import open_settings, with_choices
from common.planning.shared_fingerprint import SharedFingerprint, merge
from common.system.files import PRIVATE, write_atomically
from server.provisioning.site_register import REGISTER_FILE, read_register

FOLDER = "fingerprints"


@dataclass(frozen=True)
class Settled:
    """A federation that leaves nothing open.

    Attributes
    ----------
    config
        The federation, with numbers in place of every ``auto``.
    files
        Files for every kit, by name: which settings were chosen. Empty if none was.
    notes
        What was chosen and from what, in words.
    received
        The fingerprint of each site that they follow from.
    """

    config: FederationConfig
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    received: Mapping[str, FingerprintFile] = field(default_factory=dict)

    def save(self, authority: Path) -> None:
        """Keep the fingerprints in the authority's folder."""
        if not self.received:
            return
        folder = authority / FOLDER
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made: {error.strerror}") from None
        for site, file in self.received.items():
            write_atomically(folder / f"{site}.json", file.as_json(), mode=PRIVATE)


def settle(
    config: FederationConfig, out: Path, given: Sequence[Path], own_keys: Mapping[str, ec.EllipticCurvePublicKey]
) -> Settled:
    """Choose what a federation file leaves ``auto``.

    Parameters
    ----------
    config
        The federation; its ``network`` lists the sites.
    out
        The folder of all kits, with the keys and fingerprints of earlier calls.
    given
        Files of ``fedvox-client fingerprint``.
    own_keys
        Keys from the requests that come with them.

    Raises
    ------
    ConfigError
        A fingerprint is missing, damaged, not signed by its site, or made for another federation; or nothing can be
        chosen from them.
    """
    chosen = open_settings(config)
    if not chosen:
        if given:
            raise ConfigError(f"--fingerprint {given[0]}: is not needed: the federation file leaves nothing auto")
        return Settled(config)
    received = _received(config, out, given, own_keys)
    merged = merge([file.fingerprint for file in received.values()])
    settled = with_choices(config, merged)
    about = Chosen(keys=chosen, sites=tuple(received))
    counts = ", ".join(f"{site} {file.fingerprint.cases}" for site, file in received.items())
    whole = f"{counted(len(received), 'site')}, {counted(merged.cases, 'case')} ({counts})"
    notes = (
        f"chosen from the fingerprints of {whole}:",
        *(f"  {line}" for line in about.in_words(settled)),
        *(f"  note: {line}" for line in _estimates(config, merged)),
    )
    return Settled(settled, {CHOSEN_FILE: as_json(about).encode()}, notes, received)


def _estimates(config: FederationConfig, merged: SharedFingerprint) -> Iterator[str]:
    """Name what was chosen from mean and spread, because cells do not tell it."""
    is_auto = {
        SPACING: not isinstance(config.preprocessing.spacing, tuple),
        EXTENT: isinstance(config.model.patch_size, str),
        HOUNSFIELD: "preprocessing.intensity" in open_settings(config),
    }
    thick = thick_axes(merged.spacing_percentile(50), THICK) if is_auto[SPACING] else ()
    for number, (name, item, scale) in enumerate(merged.parts()):
        percents = (0.5,) if scale is HOUNSFIELD else (50, 10) if number in thick else (50,)
        if is_auto[scale] and not all(map(item.shows, percents)):
            hidden = f"{item.suppressed:,} of {item.count:,} are in cells that are not shown"
            yield f"{name}: {hidden}, so their mean and spread were used"


def _received(
    config: FederationConfig, out: Path, given: Sequence[Path], own_keys: Mapping[str, ec.EllipticCurvePublicKey]
) -> dict[str, FingerprintFile]:
    """Return the fingerprint of every site of the federation, in the order of the file."""
    sites = config.network.sites if config.network else ()
    folder = out / "authority" / FOLDER
    keys = {**_known_keys(out, even_revoked=False), **own_keys}
    # Revoking a site changes no plan: what it shared while its key was good still counts.
    kept_keys = {**_known_keys(out, even_revoked=True), **own_keys}
    found: dict[str, FingerprintFile] = {}
    for path in given:
        file = _read_signed(path, sites, keys)
        if file.site in found:
            raise ConfigError(f"{path}: is a second fingerprint of {file.site}; give one")
        _check_made_for(config, path, file)
        _check_not_older(path, file, folder / f"{file.site}.json", keys[file.site])
        found[file.site] = file
    for site in sites:
        kept = folder / f"{site}.json"
        if site not in found and kept.exists():
            found[site] = _read_signed(kept, (site,), kept_keys)
            _check_made_for(config, kept, found[site])
    if missing := [site for site in sites if site not in found]:
        raise ConfigError(_what_is_missing(open_settings(config), missing))
    return {site: found[site] for site in sites}


def _read_signed(path: Path, sites: Collection[str], keys: Mapping[str, ec.EllipticCurvePublicKey]) -> FingerprintFile:
    file = read_fingerprint(path)
    if file.site not in sites:
        raise ConfigError(f"{path}: is of {file.site}, and not of {' or '.join(sites)} (network.sites)")
    if (key := keys.get(file.site)) is None:
        raise ConfigError(
            f"{path}: nobody can check that it is from {file.site}; also give the request that fedvox-client "
            f"request made there: --request {file.site}.csr"
        )
    if not file.is_signed_by(key):
        raise ConfigError(
            f"{path}: is not signed with the key of {file.site}, or was changed; ask the site to make it again, "
            "with the key of its request (fedvox-client fingerprint --key)"
        )
    return file


def _what_is_missing(settings: Sequence[str], sites: Sequence[str]) -> str:
    first = sites[0]
    return (
        f"{', '.join(settings)}: auto needs the fingerprint of every site, and there is none of {', '.join(sites)}; "
        "send them this federation file, let them run fedvox-client request, then "
        f"fedvox-client fingerprint --name {first} --federation FEDERATION.yaml --data DIR --key KEY "
        f"--site SITE.yaml --out {first}.json, and add --request {first}.csr --fingerprint {first}.json; or write "
        "the values by hand"
    )


def _check_not_older(path: Path, file: FingerprintFile, kept: Path, key: ec.EllipticCurvePublicKey) -> None:
    """Refuse a fingerprint older than the kept one, unless that is damaged or signed with a former key."""
    try:
        newest = read_fingerprint(kept)
    except ConfigError:
        return
    if file.made_at < newest.made_at and newest.site == file.site and newest.is_signed_by(key):
        raise ConfigError(
            f"{path}: was made at {file.made_at}, before the one of {newest.made_at} that {file.site} sent already; "
            f"give the newest, or remove {kept} if the site's clock was wrong then"
        )


def _known_keys(out: Path, *, even_revoked: bool) -> dict[str, ec.EllipticCurvePublicKey]:
    if not (out / "authority" / REGISTER_FILE).exists():
        return {}
    records = read_register(out).sites
    return {site: key_of(record.x509) for site, record in records.items() if even_revoked or not record.revoked}


def _check_made_for(config: FederationConfig, path: Path, file: FingerprintFile) -> None:
    if differing := file.differences(config):
        raise ConfigError(
            f"{path}: was made for another {' and '.join(differing)} than the federation file has; ask {file.site} to "
            "make it again with this file"
        )
