"""Makes the kits of a federation: one for its server, one for each site, and the authority behind them.

Everything is in one folder. Running it again adds what is missing, applies changes to the federation file, renews
certificates that are about to expire, and keeps every key. ``authority/`` and the kits hold private keys; the
authority's never leaves the coordinator.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec

from common.certificates import (
    AUTHORITY_FILE,
    REVOCATIONS_FILE,
    SERVER_CERTIFICATE_FILE,
    SERVER_KEY_FILE,
    SITE_CERTIFICATE_FILE,
    SITE_KEY_FILE,
    CertificateError,
    key_fingerprint,
    key_of,
    load_key,
    new_key,
    private_pem,
)
from common.config.federation import FederationConfig
from common.config.kit import KIT_FILE, Kit
from common.config.network import NetworkConfig
from common.config.yaml_file import dump_yaml
from common.errors import ConfigError, OutputError
from common.plan.plan import Plan
from common.planning.resolve import plan_from_config
from common.system.files import PRIVATE, PUBLIC, new_folder, write_atomically
from common.system.locks import FileLock, lock_file
from server.provisioning.certificate_authority import Authority, AuthorityError, read_request
from server.provisioning.kit_readme import server_readme, site_readme
from server.provisioning.provision_report import ProvisionReport
from server.provisioning.site_fingerprints import settle
from server.provisioning.site_register import Register, SiteRecord, read_register, write_register

INITIAL_MODEL = "initial_model"
PRIVATE_FILES = frozenset({SERVER_KEY_FILE, SITE_KEY_FILE})


def provision(
    config: FederationConfig,
    out: Path,
    requests: Sequence[Path] = (),
    renew: Sequence[str] = (),
    replace: Collection[str] = (),
    fingerprints: Sequence[Path] = (),
) -> ProvisionReport:
    """Make or update a federation's kits.

    Parameters
    ----------
    config
        The federation; its ``network`` lists the sites.
    out
        The folder of all kits.
    requests
        Signing requests of sites that make their own keys.
    renew
        Sites that get a new key; the old one is revoked.
    replace
        Sites whose key a request may replace; the old one is revoked.
    fingerprints
        Files of ``fedvox-client fingerprint``, from which follows what the federation file leaves ``auto``.

    Raises
    ------
    ConfigError
        The federation file is incomplete, or does not list a site, or a request would replace a site's key, or a
        fingerprint is missing or wrong.
    AuthorityError
        A key, certificate or request cannot be used.
    OutputError
        The folder belongs to another federation, or is not writable.
    """
    network = _network_of(config)
    own_keys = dict(read_request(path) for path in requests)
    settled = settle(config, out, fingerprints, own_keys)
    config = settled.config
    plan = plan_from_config(config)
    initial_model = _initial_model(config, plan)
    for name in (*own_keys, *renew):
        if name not in network.sites:
            raise ConfigError(f"network.sites: has no site {name!r}; add it to the federation file first")
    with _open_locked(out, config.name) as (authority, register):
        report = ProvisionReport(out, notes=[*settled.notes])
        shared = {
            AUTHORITY_FILE: authority.pem,
            "federation.yaml": _as_in_kits(config).resolved().encode(),
            "plan.json": (plan.model_dump_json(indent=2) + "\n").encode(),
            **settled.files,
        }
        _check_replacements(register, own_keys, replace)
        settled.save(out / "authority")
        register = register.with_listed(network.sites)
        for name in network.sites:
            register, made = _ensure_certificate(
                authority, register, name, own_keys.get(name), name in renew, network, report
            )
            record = register.sites[name]
            if record.revoked:
                report.sites[name] = "revoked"
                report.notes.append(
                    f"{name} was revoked on {record.revoked[:10]}; --renew {name} admits it again with a new key"
                )
                continue
            report.sites[name] = _write_site_kit(out / "sites" / name, config, name, record, made, shared)
            write_register(out / "authority", register)
            report.notes += _what_to_send(report, name, record)
        write_register(out / "authority", register)
        _write_server_kit(out / "server", config, network, authority, shared | initial_model, register, report)
    for name, record in sorted(register.sites.items()):
        if not record.listed:
            report.notes.append(f"{name} is no longer in the federation file: the server does not admit it")
    return report


def revoke(out: Path, site: str) -> list[str]:
    """Revoke a site's key, and every certificate for it.

    Returns
    -------
    list[str]
        What happened and what remains to be done, in words.

    Raises
    ------
    ConfigError
        There is no such site.
    OutputError
        The folder holds no kits.
    AuthorityError
        The register or the authority is damaged.
    """
    register = read_register(out)
    if site not in register.sites:
        names = ", ".join(sorted(register.sites)) or "none"
        raise ConfigError(f"{out}: has no site {site!r} (sites: {names})")
    server = out / "server"
    with _lock(out):
        register = read_register(out).with_revoked(site)
        write_register(out / "authority", register)
        (server / "sites" / f"{site}.crt").unlink(missing_ok=True)
        if server.is_dir():
            _write_revocations(server, Authority.load(out / "authority"), register)
    return [
        f"{site} is revoked; a server that uses {server} shuts it out within seconds",
        f"if the server uses a copy of that kit, delete sites/{site}.crt in the copy, and replace its "
        f"{REVOCATIONS_FILE}",
    ]


def _as_in_kits(config: FederationConfig) -> FederationConfig:
    """Point the initial model to the server kit's copy; sites get no copy, but know its hash."""
    return config.model_copy(update={"initial_model": INITIAL_MODEL}) if config.initial_model else config


def _initial_model(config: FederationConfig, plan: Plan) -> dict[str, bytes]:
    """Return the files of the initial model, for the server's kit; empty if there is none.

    Raises
    ------
    ConfigError
        The model's architecture is not the plan's.
    BundleError
        The model is damaged.
    """
    if config.initial_model is None:
        return {}
    # Imported late because it loads PyTorch.
    from server.rounds.initial_weights import first_weights

    first_weights(config, plan)
    folder = Path(config.initial_model)
    return {f"{INITIAL_MODEL}/{name}": (folder / name).read_bytes() for name in ("model.safetensors", "model.json")}


def _network_of(config: FederationConfig) -> NetworkConfig:
    if config.network is None:
        raise ConfigError("network: is missing; add network.address and network.sites (see deploy/examples)")
    return config.network


@contextlib.contextmanager
def _open_locked(out: Path, federation: str) -> Iterator[tuple[Authority, Register]]:
    """Lock ``out`` and open its authority and register, creating them on first use."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        strangers = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise OutputError(f"{out}: cannot be used: {error.strerror or error}; choose another --out") from None
    with _lock(out):
        folder = out / "authority"
        if not folder.exists():
            if strangers:
                raise OutputError(f"{out}: is not a folder of kits (it holds {strangers[0]}); choose another --out")
            with new_folder(folder) as part:
                part.chmod(0o700)
                Authority.create(federation).save(part)
                write_register(part, Register(federation=federation))
        register = read_register(out)
        if register.federation != federation:
            raise OutputError(f"{out}: holds the kits of federation {register.federation!r}; choose another --out")
        yield Authority.load(folder), register


def _lock(out: Path) -> FileLock:
    return lock_file(out, flags=os.O_RDONLY | os.O_DIRECTORY)


def _ensure_certificate(
    authority: Authority,
    register: Register,
    name: str,
    own_key: ec.EllipticCurvePublicKey | None,
    renew: bool,
    network: NetworkConfig,
    report: ProvisionReport,
) -> tuple[Register, ec.EllipticCurvePrivateKey | None]:
    """Issue or renew a site's certificate as needed; return the register, and the key if one was made here."""
    known = register.sites.get(name)
    if own_key is not None:
        # Again, because two requests of one call may bring the same key.
        _check_own_key(register, name, key_fingerprint(own_key))
        if known is None or known.key != key_fingerprint(own_key):
            certificate = authority.issue_to_site(name, own_key, network.certificate_days)
            return register.with_certificate(name, certificate, "site"), None
    elif known is None or renew:
        key = new_key()
        certificate = authority.issue_to_site(name, key.public_key(), network.certificate_days)
        return register.with_certificate(name, certificate, "coordinator"), key
    reason = authority.why_renew_site(known.x509) if known.revoked is None else None
    if reason is None:
        return register, None
    old = known.x509
    report.notes.append(
        f"{name} has a new certificate for the same key: {reason}; the old one stays valid until "
        f"{old.not_valid_after_utc:%Y-%m-%d}"
    )
    certificate = authority.issue_to_site(name, key_of(old), network.certificate_days)
    return register.with_certificate(name, certificate, known.made_by), None


def _check_replacements(
    register: Register, own_keys: Mapping[str, ec.EllipticCurvePublicKey], replace: Collection[str]
) -> None:
    """Let no request replace a key that is in use, unless a person has compared both."""
    for name, own_key in own_keys.items():
        known, key = register.sites.get(name), key_fingerprint(own_key)
        _check_own_key(register, name, key)
        if known is None or known.revoked is not None or known.key == key or name in replace:
            continue
        raise ConfigError(
            f"{name}: has the key {known.key} since {known.added[:10]} (made by the {known.made_by}), and the request "
            f"brings {key}; ask the site which is theirs (fedvox-client request shows it), then add --replace {name}"
        )


def _check_own_key(register: Register, name: str, key: str) -> None:
    if key in register.revoked_keys:
        raise AuthorityError(f"{name}: this key was revoked; ask the site to make a new one (fedvox-client request)")
    owner = register.owner_of(key) or name
    if owner != name:
        raise AuthorityError(f"{name}: this is the key of {owner}; every site needs its own")


def _write_site_kit(
    folder: Path,
    config: FederationConfig,
    name: str,
    record: SiteRecord,
    key: ec.EllipticCurvePrivateKey | None,
    shared: Mapping[str, bytes],
) -> str:
    """Write a site's kit, with ``key`` if one was just made; return ``new``, ``changed`` or ``unchanged``."""
    files = dict(shared) | {
        SITE_CERTIFICATE_FILE: record.certificate.encode(),
        "README.md": site_readme(config, name, record.made_by == "site").encode(),
    }
    if key is not None:
        files[SITE_KEY_FILE] = private_pem(key)
    files[KIT_FILE] = _kit(config, "site", name, shared)
    existed = folder.exists()
    if record.made_by == "site" and not _has_key_of(folder, record):
        # The site now has its own key; a key made for it earlier is revoked.
        (folder / SITE_KEY_FILE).unlink(missing_ok=True)
    changed = _write_kit(folder, files)
    return ("changed" if changed else "unchanged") if existed else "new"


def _what_to_send(report: ProvisionReport, name: str, record: SiteRecord) -> list[str]:
    """Return what the coordinator must do with a site's kit, in words."""
    folder = report.out / "sites" / name
    if record.made_by == "coordinator" and not _has_key_of(folder, record):
        if (folder / SITE_KEY_FILE).exists():
            return [f"{folder / SITE_KEY_FILE} is not the key of {name}; --renew {name} makes a new one"]
        if report.sites[name] == "new":
            return [f"{folder} comes without the private key; if {name} has lost it, --renew {name} makes a new one"]
    elif record.made_by == "coordinator" and report.sites[name] == "new":
        return [f"send {folder} to {name} over a secure channel: it contains the site's private key"]
    return [] if report.sites[name] == "unchanged" else [f"send {folder} to {name}"]


def _has_key_of(folder: Path, record: SiteRecord) -> bool:
    try:
        return load_key(folder / SITE_KEY_FILE).public_key() == record.x509.public_key()
    except CertificateError:
        return False


def _write_server_kit(
    folder: Path,
    config: FederationConfig,
    network: NetworkConfig,
    authority: Authority,
    shared: Mapping[str, bytes],
    register: Register,
    report: ProvisionReport,
) -> None:
    hosts = [network.address, *network.other_addresses]
    files = dict(shared) | {"README.md": server_readme(config).encode()}
    reason = authority.why_renew(folder, hosts)
    if reason is not None:
        issued = authority.issue(hosts, network.certificate_days)
        files |= {SERVER_KEY_FILE: issued.key, SERVER_CERTIFICATE_FILE: issued.certificate}
        if folder.exists():
            report.notes.append(f"the server has a new certificate: {reason}; restart it to use the new one")
    admitted = {f"{name}.crt": record.certificate for name, record in register.admitted().items()}
    files |= {f"sites/{file}": text.encode() for file, text in admitted.items()}
    if not authority.is_current(folder / REVOCATIONS_FILE, register.void_certificates()):
        files[REVOCATIONS_FILE] = authority.revocation_list(register.void_certificates())
    files[KIT_FILE] = _kit(config, "server", None, shared)
    _write_kit(folder, files)
    for file in (folder / "sites").glob("*.crt"):
        if file.name not in admitted:
            file.unlink(missing_ok=True)


def _write_revocations(folder: Path, authority: Authority, register: Register) -> None:
    write_atomically(folder / REVOCATIONS_FILE, authority.revocation_list(register.void_certificates()))


def _write_kit(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Write the files that differ, ``kit.yaml`` last; return whether any did."""
    if not folder.exists():
        with new_folder(folder) as part:
            part.chmod(0o700)
            _write_files(part, files)
        return True
    try:
        differing = {
            name: content
            for name, content in files.items()
            if not (folder / name).is_file() or (folder / name).read_bytes() != content
        }
        _write_files(folder, differing)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be read or written: {error.strerror or error}") from None
    return bool(differing)


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, content, mode=PRIVATE if path.name in PRIVATE_FILES else PUBLIC)


def _kit(
    config: FederationConfig, role: Literal["server", "site"], site: str | None, files: Mapping[str, bytes]
) -> bytes:
    network = _network_of(config)
    kit = Kit(
        role=role,
        federation=config.name,
        digest=config.digest(),
        address=network.address,
        port=network.port,
        site=site,
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    ).sealed()
    return dump_yaml(kit.model_dump(mode="json", exclude_none=True)).encode()
