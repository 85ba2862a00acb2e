"""What is in the images, and what is not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.machine import BASE, CLIENT, CUDA, SERVER, Machine

pytestmark = pytest.mark.deploy

LARGEST_BYTES = {CLIENT: 1.2e9, SERVER: 1.0e9, CUDA: 5.5e9}
TOOLS = "gcc cc c++ g++ clang ld make cmake ninja pip pip3 uv uvx git"
IMAGES = pytest.mark.parametrize("image", [CLIENT, SERVER])


def inside(machine: Machine, image: str, *command: str) -> str:
    """What a command says in a container with nothing but the image, that may write nowhere."""
    limits = ["--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    return machine.podman("run", *limits, "--entrypoint", command[0], image, *command[1:]).stdout


@IMAGES
def test_an_image_is_small_enough(machine: Machine, image: str) -> None:
    size = machine.bytes_of(image) - machine.bytes_of(BASE)
    print(f"{image}: {size / 1e9:.3f} GB without its base")
    assert size < LARGEST_BYTES[image]


@IMAGES
def test_an_image_says_what_it_is_and_how_to_ask_for_its_health(machine: Machine, image: str) -> None:
    [content] = json.loads(machine.podman("image", "inspect", image).stdout)
    labels = content["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "0.0.test"
    assert len(labels["org.opencontainers.image.revision"]) == 40
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert content["Config"]["User"] == "10001:10001"
    assert "health" in content["Healthcheck"]["Test"]
    assert not [line for line in content["Config"]["Env"] if "KEY" in line or "SECRET" in line]


@IMAGES
def test_nothing_in_an_image_compiles_or_installs(machine: Machine, image: str) -> None:
    assert inside(machine, image, "sh", "-c", f"for tool in {TOOLS}; do command -v $tool; done; true") == ""
    assert inside(machine, image, "python", "-c", "import importlib.util as u; print(u.find_spec('pip'))") == "None\n"


@IMAGES
def test_an_image_lists_its_contents(machine: Machine, image: str) -> None:
    content = json.loads(inside(machine, image, "cat", "/opt/fedvox/sbom.cdx.json"))
    found = {component["name"]: component["version"] for component in content["components"]}
    assert content["bomFormat"] == "CycloneDX"
    assert found["flwr"] == "1.42.0" and "granian" in found
    assert found["torch"].startswith("2.13.0") and "fedvox" in found
    debian = dict(
        line.split(" ") for line in inside(machine, image, "cat", "/opt/fedvox/debian-packages.txt").splitlines()
    )
    assert len(debian) > 50 and debian["libc6"].startswith("2.36-")
    assert not {"nginx", "nginx-light"} & debian.keys()


@IMAGES
def test_data_keys_and_runs_of_the_tree_are_not_in_an_image(machine: Machine, image: str) -> None:
    found = inside(machine, image, "sh", "-c", "find / -xdev 2>/dev/null; true").splitlines()
    assert len(found) > 10_000
    names = {path.rpartition("/")[2] for path in found}
    assert not names & {
        "secret.nii.gz",
        "scan.nii.gz",
        "server.key",
        "site.key",
        "report.html",
        "federation.yaml",
        "wheels",
    }


@pytest.mark.parametrize(("image", "program"), [(CLIENT, "fedvox-client"), (SERVER, "fedvox-server")])
def test_the_program_runs_as_nobody_in_particular(machine: Machine, image: str, program: str) -> None:
    assert inside(machine, image, "id", "-u") == "10001\n"
    assert "fedvox" in inside(machine, image, program, "--version")
    assert machine.podman("run", "--rm", "--user=4711:4711", "--read-only", image, "--version").stdout


@pytest.fixture(scope="module")
def gpus() -> Iterator[Machine]:
    """A machine that has the image for GPUs; its wheels, 2.7 GB, are used if they are there and never fetched."""
    wheels = os.environ.get("FEDVOX_CUDA_WHEELS")
    if not wheels:
        pytest.skip("FEDVOX_CUDA_WHEELS names no folder of wheels (deploy/wheels/.gitignore); 20 GB of disk are needed")
    made = Machine()
    made.make_cuda_image(Path(wheels))
    yield made
    made.podman("rmi", "--force", CUDA)


@pytest.mark.slow
def test_the_image_for_gpus_works_without_one_and_may_do_as_little(gpus: Machine) -> None:
    size = gpus.bytes_of(CUDA) - gpus.bytes_of(BASE)
    print(f"{CUDA}: {size / 1e9:.3f} GB without its base")
    assert size < LARGEST_BYTES[CUDA]
    found = json.loads(inside(gpus, CUDA, "python", "-c", ABOUT_TORCH))
    assert found["cuda"] and not found["gpu"]
    assert found["cpu"] == found["auto"] and found["auto"].startswith("ok") and "no GPU is used" in found["auto"]
    assert found["cuda alone"].startswith("error") and "PyTorch finds no GPU" in found["cuda alone"]
    assert "runner" in inside(gpus, CUDA, "fedvox-client", "--help")
    assert inside(gpus, CUDA, "sh", "-c", "fedvox-client health --state /state || true") == "nothing runs on /state\n"
    assert inside(gpus, CUDA, "id", "-u") == "10001\n"
    assert "Read-only" in inside(gpus, CUDA, "sh", "-c", "touch /opt/fedvox/x 2>&1 || true")
    assert inside(gpus, CUDA, "sh", "-c", f"for tool in {TOOLS}; do command -v $tool; done; true") == ""


ABOUT_TORCH = """
import json, torch
from client.site.preflight import check_device
found = {"cuda": torch.version.cuda, "gpu": torch.cuda.is_available(), "cuda alone": str(check_device("cuda"))}
print(json.dumps(found | {name: str(check_device(name)) for name in ("cpu", "auto")}))
"""
