"""Podman and Buildah with a storage of their own, a base image made of Debian's packages, and the real images.

What takes long (base, wheels, layers) is kept in $FEDVOX_DEPLOY_CACHE, by default /var/tmp/fedvox-deploy, and made
again when what it is made of changes. ``python -m tests.deploy.machine`` fetches what comes from elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.deploy.tools import PLACES
from tests.e2e.network_federation import wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
CLIENT, SERVER = "localhost/fedvox-client:cpu", "localhost/fedvox-server:latest"
CUDA = "localhost/fedvox-client:cuda"
PROGRAMS = ("podman", "buildah", "runc", "debootstrap", "podman-compose")
NICE = ("nice", "-n", "19")
CACHE = Path(os.environ.get("FEDVOX_DEPLOY_CACHE", "/var/tmp/fedvox-deploy"))  # noqa: S108

_CONTAINERS = """\
[containers]
# A machine that is itself a container may not raise limits; lower ones are allowed everywhere.
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""
_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


def missing_programs() -> list[str]:
    """What has to be installed for these tests."""
    return [name for name in PROGRAMS if shutil.which(name, path=PLACES) is None]


class Machine:
    """Runs containers and builds images.

    Args:
        folder: for storage, base and wheels; kept from run to run.
    """

    def __init__(self, folder: Path = CACHE) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "containers.conf").write_text(_CONTAINERS)
        (folder / "storage.conf").write_text(_STORAGE.format(folder=folder))
        self.environment = os.environ | {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "PATH": PLACES,
        }

    def run(self, *command: str, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a program with this storage; fails with what it said."""
        done = subprocess.run(
            [*NICE, *command], env=self.environment, cwd=cwd, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def podman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``podman``; without a service manager it says on stderr that health checks get no timer, which is true."""
        return self.run("podman", *arguments, check=check)

    def inside(self, container: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in a container that runs."""
        return self.podman("exec", container, *command, check=check)

    def bytes_of(self, image: str) -> int:
        """The size of an image with all its layers."""
        return int(self.podman("image", "inspect", "--format", "{{.Size}}", image).stdout)

    def fetch(self) -> None:
        """Makes what comes from elsewhere, where it is missing: the base, and the wheels."""
        self._make_base()
        self._wheels()

    def make_images(self) -> None:
        """Makes both images."""
        self.fetch()
        context = self._context(self._wheels())
        for name, tag in (("server", SERVER), ("client", CLIENT)):
            # The host's network, for Debian's packages; wheels come with the context.
            self._build(context, name, tag, "--layers", "--network", "host")

    def make_cuda_image(self, wheels: Path) -> None:
        """Makes the client's image for GPUs, and keeps nothing that it is made of: no layers, no wheels.

        Args:
            wheels: that were fetched as ``deploy/wheels/.gitignore`` says, on the same disk.
        """
        self._make_base()
        self._build(self._context(wheels), "client", CUDA, "--network", "none", "--build-arg", "VARIANT=cuda")

    def _build(self, context: Path, name: str, tag: str, *options: str) -> None:
        revision = self.run("git", "rev-parse", "HEAD", cwd=REPOSITORY, check=False).stdout.strip() or "unknown"
        labels = ["--build-arg", "VERSION=0.0.test", "--build-arg", f"REVISION={revision}"]
        command = ["buildah", "bud", "--format", "docker", "--tag", tag, *options, *labels]
        self.run(*command, "-f", f"deploy/Dockerfile.{name}", ".", cwd=context)

    def _make_base(self) -> None:
        if self.podman("image", "exists", BASE, check=False).returncode == 0:
            return
        base = self.folder / "base"
        packages = "--include=python3,python3-venv,python3-pip,ca-certificates,tzdata"
        shutil.rmtree(base, ignore_errors=True)
        self.run("debootstrap", "--variant=minbase", packages, "bookworm", str(base), "http://deb.debian.org/debian")
        for leftover in (*base.glob("var/cache/apt/archives/*.deb"), *base.glob("var/lib/apt/lists/*_*")):
            leftover.unlink()
        archive = self.folder / "base.tar"
        self.run("tar", "-C", str(base), "-cf", str(archive), ".")
        self.podman("import", str(archive), BASE)
        archive.unlink()
        shutil.rmtree(base)

    def _wheels(self) -> Path:
        """Wheels of everything that both images need, fetched with this machine's own settings of pip."""
        recipe = b"".join((REPOSITORY / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
        wheels = self.folder / f"wheels-{hashlib.sha256(recipe).hexdigest()[:12]}"
        if not wheels.exists():
            part = self.folder / "wheels.part"
            shutil.rmtree(part, ignore_errors=True)
            source = self._copy_of_tree(self.folder / "source")
            wanted = [".", "setuptools>=77", "cyclonedx-bom==7.5.0"]
            pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--constraint", "constraints.txt"]
            self.run(*pip, "--wheel-dir", str(part), *wanted, cwd=source)
            for own in part.glob("fedvox-*"):
                own.unlink()
            part.rename(wheels)
        return wheels

    def _context(self, wheels: Path) -> Path:
        """The tree as it is checked in or about to be, with wheels; and with data and keys that must not get in."""
        context = self._copy_of_tree(self.folder / "context")
        for wheel in wheels.iterdir():
            (context / "deploy/wheels" / wheel.name).hardlink_to(wheel)
        for name in (
            "kits/server/server.key",
            "kits/site.key",
            "runs/first/report.html",
            "client/secret.nii.gz",
            "data/scan.nii.gz",
        ):
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            (context / name).write_text("must not get into an image")
        return context

    def _copy_of_tree(self, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        for name in filter(None, self.run(*listed, cwd=REPOSITORY).stdout.split("\0")):
            if (REPOSITORY / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, folder / name)
        return folder


class Stack:
    """The containers of one compose file.

    Args:
        machine: where they run.
        kind: ``site`` or ``server``: the folder of the compose file.
        settings: what its ``.env`` says.
        overlay: a further compose file.
    """

    def __init__(
        self,
        machine: Machine,
        folder: Path,
        kind: str,
        settings: Mapping[str, object],
        overlay: Path | None = None,
    ) -> None:
        self.machine = machine
        self.project = str(settings["FEDVOX_PROJECT"])
        files = [REPOSITORY / "deploy" / kind / "compose.yaml", *filter(None, [overlay])]
        self._files = [option for file in files for option in ("-f", str(file))]
        self._env = folder / f"{self.project}.env"
        self._env.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``podman-compose`` on this file."""
        files = ["--env-file", str(self._env), *self._files]
        return self.machine.run("podman-compose", "--in-pod=false", *files, *arguments, check=check)

    def name(self, service: str) -> str:
        """Of a service's container."""
        return f"{self.project}_{service}_1"

    def log(self, service: str) -> str:
        """What a service has said."""
        done = self.machine.podman("logs", self.name(service), check=False)
        return done.stdout + done.stderr

    def save(self, service: str, file: Path, *command: str) -> None:
        """Writes what a command says into a file; it runs in a container of its own, with a service's volumes."""
        with file.open("wb") as archive:
            subprocess.run(self._alone(service, *command), env=self.machine.environment, stdout=archive, check=True)

    def restore(self, service: str, file: Path, *command: str) -> None:
        """Gives a file to a command, which runs in a container of its own, with a service's volumes."""
        with file.open("rb") as archive:
            subprocess.run(self._alone(service, *command), env=self.machine.environment, stdin=archive, check=True)

    def _alone(self, service: str, program: str, *arguments: str) -> list[str]:
        files = ["--env-file", str(self._env), *self._files]
        run = ["run", "--rm", "-T", "--no-deps", "--entrypoint", program, service, *arguments]
        return [*NICE, "podman-compose", "--in-pod=false", *files, *run]

    def wait_until(self, condition: Callable[[], object], service: str, what: str, seconds: float = 180) -> None:
        """Polls until something is true; fails with what a service has said meanwhile."""
        try:
            wait_for(condition, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; {service} said:\n{self.log(service)[-2000:]}") from None

    def wait_for_line(self, service: str, text: str) -> None:
        """Waits until a service has said something."""
        self.wait_until(lambda: text in self.log(service), service, text)

    def inside(self, service: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in a service's container."""
        return self.machine.inside(self.name(service), *command, check=check)

    def python(self, service: str, code: str) -> str:
        """What a piece of Python says in a service's container."""
        return self.inside(service, "python", "-c", code).stdout.strip()

    def volume(self, name: str) -> Path:
        """Where a volume's files are on this machine."""
        found = self.machine.podman("volume", "inspect", "--format", "{{.Mountpoint}}", f"{self.project}_{name}")
        return Path(found.stdout.strip())

    def is_running(self, service: str) -> bool:
        """Whether a service's container runs."""
        done = self.machine.podman("inspect", "--format", "{{.State.Running}}", self.name(service), check=False)
        return done.stdout.strip() == "true"

    def address(self, service: str) -> str:
        """Of a service's container on its network."""
        found = self.machine.podman("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
                                    self.name(service))  # fmt: skip
        return found.stdout.strip()

    def process(self, service: str, number: int = 1) -> int:
        """The number on this machine of the process that has this one in a service's container; 0 if there is none."""
        first = self.machine.podman("inspect", "--format", "{{.State.Pid}}", self.name(service), check=False)
        with contextlib.suppress(OSError):
            namespace = Path(f"/proc/{first.stdout.strip()}/ns/pid").readlink()
            for place in Path("/proc").iterdir():
                if place.name.isdecimal() and _number_within(place, namespace) == number:
                    return int(place.name)
        return 0

    def healthy(self, services: Sequence[str]) -> dict[str, bool]:
        """What the health checks find that are in the image or the compose file."""
        return {
            service: self.machine.podman("healthcheck", "run", self.name(service), check=False).returncode == 0
            for service in services
        }

    def down(self) -> None:
        """Removes containers, networks and volumes."""
        self.compose("down", "--volumes", "--timeout", "10", check=False)


def _number_within(process: Path, namespace: Path) -> int | None:
    """A process's number in a namespace; None if it is in none of that name, or gone."""
    try:
        if (process / "ns/pid").readlink() != namespace:
            return None
        found = re.search(r"^NSpid:\s(.*)$", (process / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1].split()[-1]) if found else None


if __name__ == "__main__":
    Machine().fetch()
