"""What the server's ``start`` checks and prepares before the first process runs."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

import server
from common.config import FederationConfig, load_federation
from common.errors import ConfigError, FedvoxError, OutputError
from common.flower import flower_environment
from common.network_config import Kit
from common.supervise import Child, answers, put_aside_if_large
from server import unix_socket
from server.app_lock import DATABASE, OBJECTS, RUN_VARIABLE, SPOOL
from server.authority import write_private
from server.proxy import REFUSED_LOG, Listen, write_proxy_configuration
from server.state import RunFolder

WARN_BEFORE = timedelta(days=14)
_SKELETON = frozenset({"checkpoints", "logs", "plan.json", "start.lock"})


def read_federation(kit_folder: Path, kit: Kit) -> FederationConfig:
    """The federation of a server's kit.

    Raises:
        ConfigError: it is not the one that the kit was made for.
    """
    config = load_federation(kit_folder / "federation.yaml")
    if config.network is None or config.digest() != kit.digest:
        raise ConfigError(
            f"{kit_folder}: federation.yaml was changed, or this is another version of Fedvox than made the kit; "
            "run fedvox-server provision again"
        )
    return config


def check_certificate(file: Path, say: Callable[[str], None]) -> None:
    """Says when the server's certificate is about to expire.

    Raises:
        FedvoxError: it has expired, is not valid yet, or cannot be read.
    """
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError):
        raise FedvoxError(f"{file}: is missing or damaged; run fedvox-server provision again") from None
    now, begin, end = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        raise FedvoxError(f"{file}: expired on {end:%Y-%m-%d}; run fedvox-server provision again, which renews it")
    if now < begin:
        raise FedvoxError(f"{file}: is valid only from {begin:%Y-%m-%d %H:%M} UTC on; is this machine's clock right?")
    if end - now < WARN_BEFORE:
        say(f"the server's certificate expires on {end:%Y-%m-%d}; fedvox-server provision renews it")


def default_listen(kit: Kit) -> Listen:
    """Where the proxy listens unless told otherwise."""
    if kit.address in ("localhost", "127.0.0.1"):
        return Listen("127.0.0.1", kit.port)
    if kit.address == "::1":
        return Listen("::1", kit.port)
    return Listen("::" if ":" in kit.address else "0.0.0.0", kit.port)  # noqa: S104 -- meant to be open


def make_run_folder(run: Path) -> None:
    """Makes the folder of a new run, for its owner alone, or finds an existing one.

    Raises:
        OutputError: it holds something else, or cannot be made.
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

    Raises:
        ConfigError: it is of another one.
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


def forget_messages(run: Path) -> None:
    """Removes sites' updates, and all else that SuperLink kept, of a run that is over; a model hangs on none of it."""
    for folder in (OBJECTS, SPOOL):
        shutil.rmtree(run / folder, ignore_errors=True)
    for file in run.glob(f"{DATABASE}*"):
        file.unlink(missing_ok=True)


def check_port(listen: Listen) -> None:
    """Sees that the proxy will be able to listen.

    Raises:
        FedvoxError: somebody else does, the address is not this machine's, or we may not.
    """
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.host, listen.port))
        except OSError as error:
            raise FedvoxError(
                f"cannot listen on {listen}: {error.strerror}; end what uses it, or choose another by --listen"
            ) from None


def flower_processes(
    run: Path, kit: Path, superlink: Listen, health: str = "", beside: Path | None = None
) -> list[Child]:
    """SuperLink and superexec, in the order of starting.

    Args:
        run: the run folder, for state and logs; absolute, as is ``kit``.
        kit: the server's kit.
        superlink: where SuperLink listens; the loopback interface must be among it.
        health: where it tells its health by gRPC (host:port); empty is nowhere.
        beside: a socket that it listens on too.
    """
    port = superlink.port
    secret = run / "secret"
    write_private(secret, secrets.token_hex(32).encode())
    environment = flower_environment(run / "flwr-home")
    programs = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([programs, environment.get("PATH", "")])
    # The server app is found where this program's own modules are, installed or not.
    here = str(Path(server.__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH")]))
    environment[RUN_VARIABLE] = str(run)
    if beside is not None:
        environment[unix_socket.VARIABLE] = str(beside)
    environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "1.0"
    superlink_command = [
        *(sys.executable, "-m", "server.superlink"),
        *("--host", superlink.host, "--port", str(port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--enable-supernode-auth", "--database", str(run / DATABASE)),
        *("--ssl-ca-certfile", str(kit / "ca.crt")),
        *("--ssl-certfile", str(kit / "server.crt"), "--ssl-keyfile", str(kit / "server.key")),
        "--disable-runtime-dependency-installation",
        *(("--health-server-address", health) if health else ()),
    ]
    superexec = [
        "flower-superexec",
        *("--runtime-api-address", f"127.0.0.1:{port}", "--root-certificates", str(kit / "ca.crt")),
        *("--superexec-auth-secret-file", str(secret)),
    ]
    logs = run / "logs"
    return [
        Child("superlink", superlink_command, environment, logs / "superlink.log", lambda: answers(port)),
        Child("superexec", _found(superexec), environment, logs / "superexec.log", after=("superlink",)),
    ]


def proxy_process(run: Path, kit: Path, nginx: str, listen: Listen, superlink: Path) -> Child:
    """The proxy, as a child to keep alive; it waits for a child ``superlink``.

    Args:
        run: the run folder, for configuration and logs; absolute, as is ``kit``.
        kit: the server's kit.
        nginx: its path.
        listen: where it listens.
        superlink: SuperLink's socket.
    """
    configuration = write_proxy_configuration(run / "proxy", kit, listen, superlink)
    put_aside_if_large(run / "proxy" / REFUSED_LOG)
    return Child(
        "proxy",
        [nginx, "-c", str(configuration), "-p", str(run / "proxy")],
        dict(os.environ),
        run / "logs" / "proxy.log",
        lambda: answers(listen.port, _reachable(listen.host)),
        after=("superlink",),
        on_parent_death=signal.SIGTERM,
    )


def _found(command: list[str]) -> list[str]:
    """The command with the full path of its program, which Flower installs beside Python."""
    program = shutil.which(command[0], path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise FedvoxError(f"{command[0]} is not installed; install Fedvox with its dependencies again")
    return [program, *command[1:]]


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound
