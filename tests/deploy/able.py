"""Whether containers can run on this machine at all: ``python -m tests.deploy.able`` says why not; exit status 1."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from common.system.supervisor import free_port
from tests.deploy.machine import CACHE, Machine, missing_programs
from tests.deploy.stacks import own_address

IMAGE, NETWORK = "localhost/fedvox-probe", "fedvox-probe"
SHELL = Path("/bin/sh")
NEEDED_BYTES = 12e9
"""Base, wheels, and both images with the layers that they are made of; about half of it is used."""
LIMITS = ("--read-only", "--cap-drop=ALL", "--memory=64m", "--pids-limit=16", "--cpus=0.5", "--user=10001:10001")


def main() -> int:
    reason = why_not()
    print(reason or "containers can run here")
    return 1 if reason else 0


def why_not() -> str:
    """What keeps containers from running here; empty if nothing does."""
    if os.geteuid() != 0:
        return "containers on networks of their own need root"
    if missing := missing_programs():
        return f"not installed: {', '.join(missing)}"
    try:
        place = f"{own_address()}:{free_port()}"
    except OSError:
        return "this machine has no address that containers could reach"
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(CACHE.parent).free) < NEEDED_BYTES:
        return f"{free / 1e9:.0f} GB are free at {CACHE.parent}, {NEEDED_BYTES / 1e9:.0f} are needed"
    with tempfile.TemporaryDirectory(dir=CACHE.parent, prefix="fedvox-probe-", ignore_cleanup_errors=True) as folder:
        try:
            return _try_one(Machine(Path(folder)), Path(folder) / "shell.tar", place)
        except OSError as error:
            return str(error)


def _try_one(machine: Machine, archive: Path, place: str) -> str:
    """Runs a shell in a container with a network and a port of its own, as the tests do with larger ones."""
    linked = subprocess.run(["ldd", str(SHELL)], capture_output=True, text=True, check=True).stdout
    with tarfile.open(archive, "w", dereference=True) as tar:
        for file in (str(SHELL), *re.findall(r"(/\S+) \(0x", linked)):
            tar.add(file)
    options = ["--rm", f"--network={NETWORK}", f"--publish={place}:9443", *LIMITS]
    run = ["run", *options, IMAGE, str(SHELL), "-c", "true"]
    commands = (["import", str(archive), IMAGE], ["network", "create", NETWORK], run)
    try:
        machine.podman("network", "rm", "--force", NETWORK, check=False)
        for command in commands:
            done = machine.podman(*command, check=False)
            if done.returncode != 0:
                return f"podman {command[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
    finally:
        machine.podman("network", "rm", "--force", NETWORK, check=False)
        machine.podman("rmi", "--force", IMAGE, check=False)
    return ""


if __name__ == "__main__":
    sys.exit(main())
