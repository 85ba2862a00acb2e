"""Checks and preparations of ``fedvox-server start``, before it starts any process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import server
from common.certificates import SERVER_CERTIFICATE_FILE, check_dates, load_certificate, server_identity
from common.config.federation import FederationConfig, load_federation
from common.config.kit import Kit, check_kit_files
from common.errors import ConfigError, DamagedFileError, FedvoxError, OutputError
from common.system.files import PRIVATE, write_atomically
from common.system.flower import flower_environment
from common.system.state_file import put_aside
from common.system.supervisor import Child, answers
from server.gateway.listen import Listen
from server.run_store.folder import FEDERATION_FILE, PLAN_FILE, RunFolder
from server.run_store.gateway_folder import GatewayFolder
from server.run_store.locks import DATABASE, RUN_VARIABLE, START_LOCK, UPDATES

LOOPBACK = "127.0.0.1"
WARN_BEFORE = timedelta(days=14)
PREPARED = frozenset({FEDERATION_FILE, PLAN_FILE, "checkpoints", "logs", "secret"})
"""What a start makes in a run folder before it starts any process."""
_BESIDES = frozenset({"gateway", START_LOCK})
"""What else may be in a new run folder; a separate gateway may start first."""


def read_federation(kit_folder: Path, kit: Kit) -> FederationConfig:
    """Read the federation file of a server's kit.

    Raises
    ------
    ConfigError
        The file is not the one that the kit was made for.
    DamagedFileError
        Another file of the kit is not.
    """
    config = load_federation(kit_folder / "federation.yaml")
    if config.network is None or config.digest() != kit.digest:
        raise ConfigError(
            f"{kit_folder}: federation.yaml was changed, or another version of Fedvox made the kit; "
            "run fedvox-server provision again"
        )
    check_kit_files(kit_folder, kit)
    return config


def check_certificate(kit: Path, with_key: bool, say: Callable[[str], None]) -> None:
    """Check the server's certificate, and warn when it is about to expire.

    Parameters
    ----------
    kit
        The server's kit.
    with_key
        Also check the key and the revocation list; False if only the gateway's container has them.
    say
        Called with the warning.

    Raises
    ------
    CertificateError
        The certificate has expired, is not valid yet, or cannot be used.
    """
    file, now = kit / SERVER_CERTIFICATE_FILE, datetime.now(UTC)
    if with_key:
        certificate = server_identity(kit, now).certificate
    else:
        advice = "run fedvox-server provision again"
        certificate = load_certificate(file, advice)
        check_dates(file, certificate, now, advice)
    end = certificate.not_valid_after_utc
    if end - now < WARN_BEFORE:
        say(f"the server's certificate expires on {end:%Y-%m-%d}; fedvox-server provision renews it")


def refuse_others(run: Path) -> None:
    """Refuse a folder that holds something else than a run.

    Raises
    ------
    OutputError
        It does, or cannot be read.
    """
    try:
        names = {path.name for path in run.iterdir() if not path.name.startswith(".")} if run.exists() else set()
    except OSError as error:
        raise OutputError(f"{run}: cannot be used: {error.strerror or error}; choose another --run") from None
    strangers = names - PREPARED - _BESIDES
    if strangers and FEDERATION_FILE not in names:
        raise OutputError(f"{run}: is not a run folder (it holds {min(strangers)}); choose another --run")


def make_run_folder(run: Path) -> None:
    """Create the folder of a new run, accessible to its owner only, or accept an existing one.

    Raises
    ------
    OutputError
        The folder holds something else, or cannot be created.
    """
    refuse_others(run)
    try:
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{run}: cannot be used: {error.strerror or error}; choose another --run") from None


def take_over_run(run: Path, kit_folder: Path, config: FederationConfig) -> RunFolder:
    """Open the run folder for this federation, and fill a new one.

    Raises
    ------
    ConfigError
        The folder belongs to another federation.
    DamagedFileError
        Its state, or the kit's plan, is damaged.
    """
    folder = RunFolder(run)
    state = folder.load_state()
    plan = (kit_folder / PLAN_FILE).read_text(encoding="utf-8")
    if state is not None and state.digest != config.digest():
        raise ConfigError(
            f"{run}: was started with a different federation.yaml than the kit's; give another --run to start a new run"
        )
    if state is not None and state.digests.get(PLAN_FILE) != hashlib.sha256(plan.encode()).hexdigest():
        raise DamagedFileError(
            kit_folder / PLAN_FILE, f"is not the plan that {run} was started with", "restore it, or give another --run"
        )
    # Rewritten, which also mends them, and because sites and addresses may have changed. The federation file is last,
    # because it makes this a run folder.
    folder.write_text(PLAN_FILE, plan)
    folder.write_text(FEDERATION_FILE, config.resolved())
    return folder


def draw_first_weights(run: Path) -> None:
    """Run ``server.rounds.initial_weights.draw`` in its own process, which frees its memory when it exits.

    Raises
    ------
    FedvoxError
        Drawing the weights failed.
    """
    command = [sys.executable, "-m", "server.rounds.initial_weights", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Traceback (most recent call last)" in done.stderr:
        raise RuntimeError("drawing the first weights failed") from RuntimeError(done.stderr)
    if done.returncode:
        raise FedvoxError(
            done.stderr.strip().rpartition("\n")[2] or f"drawing the first weights failed with {done.returncode}"
        )


def forget_messages(run: Path) -> None:
    """Remove the sites' updates and SuperLink's database of a finished run; no model depends on them."""
    GatewayFolder(run).remove()
    shutil.rmtree(run / UPDATES, ignore_errors=True)
    for file in run.glob(f"{DATABASE}*"):
        file.unlink(missing_ok=True)


def put_damaged_database_aside(run: Path, say: Callable[[str], None]) -> None:
    """Let SuperLink begin with an empty database if the one of the run is damaged; what it held is sent again.

    Parameters
    ----------
    run
        The run folder.
    say
        Called with a sentence if it is damaged.
    """
    file = run / DATABASE
    if not file.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(file)) as database:
            [problem] = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        problem = str(error)
    if problem != "ok":
        aside = put_aside(file)
        for rest in run.glob(f"{DATABASE}-*"):
            rest.unlink(missing_ok=True)
        say(f"{file}: is damaged ({problem}); it is made anew, and sites register again (the old one: {aside})")


def flower_processes(run: Path, port: int, health: str = "") -> list[Child]:
    """Return SuperLink and superexec, in start order.

    Only this machine reaches SuperLink, so it needs no TLS; it still verifies the signature of every site's call.

    Parameters
    ----------
    run
        The run folder for state and logs; absolute.
    port
        SuperLink's port on the loopback interface.
    health
        The address of SuperLink's gRPC health service (host:port); empty for none.
    """
    secret = run / "secret"
    write_atomically(secret, secrets.token_hex(32), mode=PRIVATE)
    environment = _environment(run)
    environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "1.0"
    superlink = [
        *("flower-superlink", "--insecure", "--host", LOOPBACK, "--port", str(port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--database", str(run / DATABASE), "--disable-runtime-dependency-installation"),
        *(("--health-server-address", health) if health else ()),
    ]
    superexec = [
        *("flower-superexec", "--insecure", "--runtime-api-address", f"{LOOPBACK}:{port}"),
        *("--superexec-auth-secret-file", str(secret)),
    ]
    logs = run / "logs"
    return [
        Child(
            name="superlink",
            command=_with_full_path(superlink),
            env=environment,
            log=logs / "superlink.log",
            ready=lambda: answers(port),
            gives_up=True,
        ),
        Child(
            name="superexec",
            command=_with_full_path(superexec),
            env=environment,
            log=logs / "superexec.log",
            after=("superlink",),
            gives_up=True,
        ),
    ]


def gateway_process(run: Path, kit: Path, listen: Listen) -> Child:
    """Return the gateway as a child process to supervise.

    Parameters
    ----------
    run
        The run folder; absolute.
    kit
        The server's kit; absolute.
    listen
        The address for the sites.
    """
    command = [sys.executable, "-m", "server.gateway", "--kit", str(kit), "--run", str(run), "--listen", str(listen)]
    return Child(
        "gateway",
        command,
        _environment(run),
        run / "logs" / "gateway.log",
        lambda: answers(listen.port, _loopback_of(listen.host)),
        gives_up=True,
    )


def _environment(run: Path) -> dict[str, str]:
    environment = flower_environment(run / "flwr-home")
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    # Lets the server app be imported from where this program's modules are, installed or not.
    here = str(Path(server.__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH")]))
    environment["PYTHONSAFEPATH"] = "1"
    environment[RUN_VARIABLE] = str(run)
    return environment


def _with_full_path(command: list[str]) -> list[str]:
    """Return the command with its program's full path; Flower installs its programs next to Python."""
    program = shutil.which(command[0], path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise FedvoxError(f"{command[0]} is not installed; install Fedvox with its dependencies again")
    return [program, *command[1:]]


def _loopback_of(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound
