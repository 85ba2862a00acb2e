"""Makes the kits of a federation: one for its server, one for each site, and the authority behind them.

Everything lies in one folder. Running it again adds what is missing, follows changes of the federation file, renews a
certificate that is about to expire, and leaves every key as it is. ``authority/`` and the sites' kits hold private
keys; the first never leaves the coordinator.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from common.config import FederationConfig
from common.errors import ConfigError, OutputError
from common.files import write_atomically
from common.network_config import KIT_FILE, Kit, NetworkConfig, SiteName
from common.plan import Frozen, Plan
from common.planning import plan_from_config
from server.authority import Authority, AuthorityError, SiteKey, new_site_key, read_request, write_private
from server.kit_readme import server_readme, site_readme

INITIAL_MODEL = "initial_model"
PRIVATE_FILES = frozenset({"ca.key", "server.key", "node.key"})


class SiteRecord(Frozen):
    """What the coordinator remembers of a site.

    key: public, in OpenSSH's form. made_by: who has made the key pair. revoked: when its key was, if it was.
    """

    key: str
    made_by: Literal["coordinator", "site"]
    added: str
    revoked: str | None = None


class Register(Frozen):
    """``authority/sites.json``: who has which key.

    revoked_keys: keys that are never let in again, whoever shows them.
    """

    format: Literal[1] = 1
    federation: str
    sites: dict[SiteName, SiteRecord] = Field(default_factory=dict)
    revoked_keys: tuple[str, ...] = ()


@dataclass
class ProvisionReport:
    """What was done: per site a word (``new``, ``changed``, ``as it was``, ``revoked``), and further remarks."""

    out: Path
    sites: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """A few lines for people."""
        width = max(map(len, self.sites), default=0)
        lines = [f"  {name:<{width}}  {what:<9}  {self.out / 'sites' / name}" for name, what in self.sites.items()]
        return "\n".join([f"server: {self.out / 'server'}", "sites:", *lines, *self.notes])


def provision(
    config: FederationConfig, out: Path, requests: Sequence[Path] = (), renew: Sequence[str] = ()
) -> ProvisionReport:
    """Makes or completes a federation's kits.

    Args:
        config: the federation; its ``network`` says who takes part.
        out: folder of all kits.
        requests: signing requests of sites that make their own keys.
        renew: sites that get a new key; the old one is let in no more.

    Raises:
        ConfigError: the federation file leaves something open, or a site is not in it.
        AuthorityError: a key, certificate or request cannot be used.
        OutputError: the folder belongs to another federation, or cannot be written.
    """
    network = _network_of(config)
    plan = plan_from_config(config)
    initial_model = _initial_model(config, plan)
    own_keys = dict(read_request(path) for path in requests)
    for name in (*own_keys, *renew):
        if name not in network.sites:
            raise ConfigError(f"network.sites: has no site {name!r}; add it to the federation file first")
    with _opened(out, config.name) as (authority, register):
        report = ProvisionReport(out)
        shared = {
            "ca.crt": authority.pem,
            "federation.yaml": _as_in_kits(config).resolved().encode(),
            "plan.json": (plan.model_dump_json(indent=2) + "\n").encode(),
        }
        records: dict[str, SiteRecord] = {}
        for name in network.sites:
            record, key = _record(register, name, own_keys.get(name), name in renew)
            records[name] = record
            register = _enter(register, name, record)
            if record.revoked:
                report.sites[name] = "revoked"
                continue
            report.sites[name] = _write_site_kit(out / "sites" / name, config, name, record, key, shared)
            _write_register(out, register)
        _write_server_kit(out / "server", config, network, authority, shared | initial_model, records, report)
        _remark(register, network, records, own_keys, report)
    return report


def revoke(out: Path, site: str) -> list[str]:
    """Lets a site's key in no more.

    Returns:
        What else is to be done, in words.

    Raises:
        ConfigError: there is no such site. OutputError: the folder holds no kits.
    """
    register = read_register(out)
    if site not in register.sites:
        names = ", ".join(sorted(register.sites)) or "none"
        raise ConfigError(f"{out}: no site {site!r} was provisioned (there are: {names})")
    with _locked(out):
        register = read_register(out)
        record = register.sites[site]
        if record.revoked is None:
            record = record.model_copy(update={"revoked": _now()})
            _write_register(out, _enter(register, site, record))
        (out / "server" / "sites" / f"{site}.pub").unlink(missing_ok=True)
    return [
        f"{site} is revoked; a server that runs from {out / 'server'} shuts it out within seconds",
        f"if the server runs from a copy of that kit, delete sites/{site}.pub in the copy",
    ]


def read_register(out: Path) -> Register:
    """Who has which key.

    Raises:
        OutputError: the folder holds no kits. AuthorityError: the register is damaged.
    """
    file = out / "authority" / "sites.json"
    try:
        return Register.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise OutputError(f"{out}: holds no kits; give the --out folder of fedvox-server provision") from None
    except (OSError, ValidationError):
        raise AuthorityError(f"{file}: is damaged; restore it from a backup") from None


def _as_in_kits(config: FederationConfig) -> FederationConfig:
    """The federation with its initial model where the server's kit has it; sites have none, but know its hash."""
    return config.model_copy(update={"initial_model": INITIAL_MODEL}) if config.initial_model else config


def _initial_model(config: FederationConfig, plan: Plan) -> dict[str, bytes]:
    """The files of the initial model, for the server's kit; empty if there is none.

    Raises:
        ConfigError: it is another network than the plan's. BundleError: it is damaged.
    """
    if config.initial_model is None:
        return {}
    # Late: it brings torch with it.
    from server.initial_weights import first_weights

    first_weights(config, plan)
    folder = Path(config.initial_model)
    return {f"{INITIAL_MODEL}/{name}": (folder / name).read_bytes() for name in ("model.safetensors", "model.json")}


def _network_of(config: FederationConfig) -> NetworkConfig:
    if config.network is None:
        raise ConfigError("network: is missing; give network.address and network.sites (see deploy/examples)")
    return config.network


@contextlib.contextmanager
def _opened(out: Path, federation: str) -> Iterator[tuple[Authority, Register]]:
    """The authority and the register in ``out``, made on first use; nobody else provisions there meanwhile."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        strangers = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise OutputError(f"{out}: cannot be used: {error.strerror or error}; choose another --out") from None
    with _locked(out):
        folder = out / "authority"
        if not folder.exists():
            if strangers:
                raise OutputError(f"{out}: holds something else than kits ({strangers[0]}); choose another --out")
            with _new_folder(folder) as part:
                part.chmod(0o700)
                Authority.create(federation).save(part)
                write_atomically(part / "sites.json", _register_text(Register(federation=federation)))
        register = read_register(out)
        if register.federation != federation:
            raise OutputError(f"{out}: holds the kits of federation {register.federation!r}; choose another --out")
        yield Authority.load(folder), register


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    lock = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which appears under its name only when it is complete."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        part.mkdir(parents=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _record(register: Register, name: str, own_key: SiteKey | None, renew: bool) -> tuple[SiteRecord, SiteKey | None]:
    """What to remember of a site, and its key pair if it gets a new one."""
    known = register.sites.get(name)
    if own_key is not None:
        if own_key.public in register.revoked_keys or (known and known.revoked and known.key == own_key.public):
            raise AuthorityError(f"{name}: this key was revoked; let the site make a new one (fedvox-client request)")
        owner = next((site for site, other in register.sites.items() if other.key == own_key.public), name)
        if owner != name:
            raise AuthorityError(f"{name}: this is the key of {owner}; every site needs its own")
        if known is not None and known.key == own_key.public:
            return known, None
        return SiteRecord(key=own_key.public, made_by="site", added=_now()), own_key
    if known is None or renew:
        key = new_site_key()
        return SiteRecord(key=key.public, made_by="coordinator", added=_now()), key
    return known, None


def _enter(register: Register, name: str, record: SiteRecord) -> Register:
    """The register with a site's record; a key that is replaced or revoked never comes back."""
    before = register.sites.get(name)
    gone = {record.key} if record.revoked else set()
    if before is not None and before.key != record.key:
        gone.add(before.key)
    return register.model_copy(
        update={
            "sites": register.sites | {name: record},
            "revoked_keys": (*register.revoked_keys, *sorted(gone - set(register.revoked_keys))),
        }
    )


def _write_site_kit(
    folder: Path,
    config: FederationConfig,
    name: str,
    record: SiteRecord,
    key: SiteKey | None,
    shared: Mapping[str, bytes],
) -> str:
    has_key = key is not None and key.private is not None
    files = dict(shared) | {
        "node.pub": (record.key + "\n").encode(),
        "README.md": site_readme(config, name, record.made_by == "site").encode(),
    }
    if key is not None and key.private is not None:
        files["node.key"] = key.private
    files[KIT_FILE] = _kit(config, "site", name)
    existed = folder.exists()
    if existed and key is not None and not has_key:
        # The site keeps its new key to itself; the one that was made for it before is void.
        (folder / "node.key").unlink(missing_ok=True)
    changed = _write_kit(folder, files)
    return ("changed" if changed else "as it was") if existed else "new"


def _write_server_kit(
    folder: Path,
    config: FederationConfig,
    network: NetworkConfig,
    authority: Authority,
    shared: Mapping[str, bytes],
    records: Mapping[str, SiteRecord],
    report: ProvisionReport,
) -> None:
    hosts = [network.address, *network.other_addresses]
    files = dict(shared) | {"README.md": server_readme(config).encode()}
    reason = authority.why_renew(folder, hosts)
    if reason is not None:
        issued = authority.issue(hosts, network.certificate_days)
        files |= {"server.key": issued.key, "server.crt": issued.certificate}
        if folder.exists():
            report.notes.append(f"the server has a new certificate: {reason}; restart it to use the new one")
    admitted = {f"{name}.pub": record.key + "\n" for name, record in records.items() if record.revoked is None}
    files |= {f"sites/{file}": text.encode() for file, text in admitted.items()}
    files[KIT_FILE] = _kit(config, "server", None)
    _write_kit(folder, files)
    for file in (folder / "sites").glob("*.pub"):
        if file.name not in admitted:
            file.unlink(missing_ok=True)


def _write_kit(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Writes what differs, ``kit.yaml`` last; whether anything did."""
    if not folder.exists():
        with _new_folder(folder) as part:
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
        (write_private if path.name in PRIVATE_FILES else write_atomically)(path, content)


def _remark(
    register: Register,
    network: NetworkConfig,
    records: Mapping[str, SiteRecord],
    own_keys: Mapping[str, SiteKey],
    report: ProvisionReport,
) -> None:
    for name, record in records.items():
        if record.revoked:
            report.notes.append(
                f"{name} was revoked on {record.revoked[:10]}; --renew {name} lets it in with a new key"
            )
        elif name not in own_keys and record.made_by == "coordinator" and report.sites[name] == "new":
            report.notes.append(f"send {report.out / 'sites' / name} to {name} by a safe way: it holds its private key")
        elif report.sites[name] != "as it was":
            report.notes.append(f"send {report.out / 'sites' / name} to {name}")
    for name in sorted(set(register.sites) - set(network.sites)):
        report.notes.append(f"{name} is not in the federation file any more: the server does not let it in")


def _kit(config: FederationConfig, role: Literal["server", "site"], site: str | None) -> bytes:
    network = _network_of(config)
    kit = Kit(
        role=role,
        federation=config.name,
        digest=config.digest(),
        address=network.address,
        port=network.port,
        site=site,
    )
    return yaml.safe_dump(kit.model_dump(mode="json", exclude_none=True), sort_keys=False).encode()


def _write_register(out: Path, register: Register) -> None:
    write_atomically(out / "authority" / "sites.json", _register_text(register))


def _register_text(register: Register) -> str:
    return json.dumps(register.model_dump(mode="json"), indent=2) + "\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
