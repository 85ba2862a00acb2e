"""What the server's ``start`` checks and prepares before the first process runs."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import server
from common.certificates import SERVER_CERTIFICATE_FILE, check_dates, load_certificate, server_identity
from common.config.federation import FederationConfig, load_federation
from common.config.kit import Kit
from common.errors import ConfigError, FedvoxError, OutputError
from common.system.flower import flower_environment
from common.system.supervisor import Child, answers
from server.gateway.listen import Listen
from server.provisioning.certificate_authority import write_private
from server.run_store.folder import RunFolder
from server.run_store.gateway_folder import GatewayFolder
from server.run_store.locks import DATABASE, RUN_VARIABLE, UPDATES

LOOPBACK = "127.0.0.1"
WARN_BEFORE = timedelta(days=14)
_SKELETON = frozenset({"checkpoints", "gateway", "logs", "plan.json", "start.lock"})
"""What may lie in a run folder before it is one; the gateway, where it runs by itself, may begin first."""


def read_federation(kit_folder: Path, kit: Kit) -> FederationConfig:
    """The federation of a server's kit.

    Raises
    ------
    ConfigError
        it is not the one that the kit was made for.
    """
    config = load_federation(kit_folder / "federation.yaml")
    if config.network is None or config.digest() != kit.digest:
        raise ConfigError(
            f"{kit_folder}: federation.yaml was changed, or this is another version of Fedvox than made the kit; "
            "run fedvox-server provision again"
        )
    return config


def check_certificate(kit: Path, with_key: bool, say: Callable[[str], None]) -> None:
    """Sees that the server's certificate can be used, and says when it is about to expire.

    Parameters
    ----------
    kit
        the server's.
    with_key
        also that its key and the list of revoked certificates can; without, another container has them.
    say
        gets a line.

    Raises
    ------
    CertificateError
        it has expired, is not valid yet, or cannot be used.
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


def make_run_folder(run: Path) -> None:
    """Makes the folder of a new run, for its owner alone, or finds an existing one.

    Raises
    ------
    OutputError
        it holds something else, or cannot be made.
    """
    try:
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "logs").mkdir(exist_ok=True)
        strangers = {path.name for path in run.iterdir() if not path.name.startswith(".")} - _SKELETON
    except OSError as error:
        raise OutputError(f"{run}: cannot be used: {error.strerror or error}; choose another --run") from None
    if strangers and not (run / "federation.yaml").exists():
        raise OutputError(f"{run}: holds something else than a run ({min(strangers)}); choose another --run")


def take_over_run(run: Path, kit_folder: Path, config: FederationConfig) -> RunFolder:
    """A run folder for this federation: a new one is filled, an existing one must be of the same federation.

    Raises
    ------
    ConfigError
        it is of another one.
    """
    folder = RunFolder(run)
    state = folder.load_state()
    if state is not None and state.digest != config.digest():
        raise ConfigError(
            f"{run}: was begun with another federation.yaml than the kit has now; give another --run to begin anew"
        )
    folder.write_text("plan.json", (kit_folder / "plan.json").read_text(encoding="utf-8"))
    # Last: this file makes it a run folder. Sites and addresses in it may have changed since.
    folder.write_text("federation.yaml", config.resolved())
    return folder


def draw_first_weights(run: Path) -> None:
    """Has ``server.rounds.initial_weights.draw`` done in a process of its own, whose memory ends with it.

    Raises
    ------
    FedvoxError
        as there, or the process ended without saying why.
    """
    command = [sys.executable, "-m", "server.rounds.initial_weights", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FedvoxError(
            done.stderr.strip().rpartition("\n")[2] or f"drawing the first weights ended with {done.returncode}"
        )


def forget_messages(run: Path) -> None:
    """Removes sites' updates, and all that SuperLink kept, of a run that is over; no model depends on it."""
    GatewayFolder(run).remove()
    shutil.rmtree(run / UPDATES, ignore_errors=True)
    for file in run.glob(f"{DATABASE}*"):
        file.unlink(missing_ok=True)


def flower_processes(run: Path, port: int, health: str = "") -> list[Child]:
    """SuperLink and superexec, in the order of starting.

    Only this machine reaches SuperLink, so it needs no TLS; it checks the signature of every site's call all the same.

    Parameters
    ----------
    run
        the run folder, for state and logs; absolute.
    port
        where SuperLink listens, on the loopback interface.
    health
        where it tells its health by gRPC (host:port); empty is nowhere.
    """
    secret = run / "secret"
    write_private(secret, secrets.token_hex(32).encode())
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
        Child("superlink", _found(superlink), environment, logs / "superlink.log", lambda: answers(port)),
        Child("superexec", _found(superexec), environment, logs / "superexec.log", after=("superlink",)),
    ]


def gateway_process(run: Path, kit: Path, listen: Listen) -> Child:
    """The gateway, as a child to keep alive.

    Parameters
    ----------
    run
        the run folder; absolute, as is ``kit``.
    kit
        the server's kit.
    listen
        where sites reach it.
    """
    command = [sys.executable, "-m", "server.gateway", "--kit", str(kit), "--run", str(run), "--listen", str(listen)]
    return Child(
        "gateway",
        command,
        _environment(run),
        run / "logs" / "gateway.log",
        lambda: answers(listen.port, _reachable(listen.host)),
    )


def _environment(run: Path) -> dict[str, str]:
    environment = flower_environment(run / "flwr-home")
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    # The server app is found where this program's own modules are, installed or not.
    here = str(Path(server.__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH")]))
    environment["PYTHONSAFEPATH"] = "1"
    environment[RUN_VARIABLE] = str(run)
    return environment


def _found(command: list[str]) -> list[str]:
    """The command with the full path of its program, which Flower installs beside Python."""
    program = shutil.which(command[0], path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise FedvoxError(f"{command[0]} is not installed; install Fedvox with its dependencies again")
    return [program, *command[1:]]


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound
