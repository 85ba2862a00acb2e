"""Exports in the formats of others: the same results as PyTorch and ``predict``, no pickle, no path of this machine."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import run, verify_metadata
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import nn

from client.cli.entry import main as client
from common.errors import ConfigError, FedvoxError
from common.models.bundle import load_bundle
from common.models.export_manifest import parse_manifest
from common.models.unet3d import build_model
from common.plan.plan import Plan
from server.export.export import ExportOptions, export_model
from server.export.monai_bundle import COPIED, write_monai_bundle
from server.export.monai_transforms import cases
from server.export.network_files import check_same, require_packages, write_onnx, write_torchscript
from tests.exported import federation, networked_run
from tests.tiny import save_bundle

REPOSITORY = Path(__file__).resolve().parents[3]
NO_WAY_OUT = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
"""An environment in which every download fails."""
Intensity = Mapping[str, object]


def settings(**changes: object) -> dict[str, Any]:
    """A small network's, with unequal strides and kernels."""
    small = {"channels": (4, 8, 8), "blocks": 1, "decoder_blocks": 1, "groups": 2, "patch_size": (16, 12, 9)}
    uneven = {"strides": ((1, 1, 1), (2, 2, 1), (1, 2, 1)), "kernels": ((1, 3, 3), (3, 3, 5), (3, 3, 3))}
    return {**small, **uneven, **changes}


def plan_of(inputs: int = 1, preprocessing: Mapping[str, object] | None = None, **changes: object) -> Plan:
    """A plan for two labels whose names MONAI would read as expressions, references and files."""
    names, network = ("$t1", "@t2")[:inputs], settings(**changes)
    patch, stages = network.pop("patch_size"), len(network["channels"])
    network |= {"blocks": (network["blocks"],) * stages, "in_channels": inputs, "classes": 3}
    return Plan.model_validate(
        {
            "channels": names,
            "labels": {1: "%ball", 2: "shell @#0"},
            "preprocessing": preprocessing or {"intensity": ({},) * inputs},
            "model": network,
            "patch_size": patch,
        }
    )


EVERYTHING = settings(residual=True, deep_supervision=True)
TWO_STAGES = {"channels": (4, 8), "kernels": ((3, 3, 3), (3, 3, 3))}
NETWORKS = {
    "plain": plan_of(),
    "no down-sampling, odd patch": plan_of(patch_size=(9, 11, 13), strides=((1, 1, 1), (1, 1, 1)), **TWO_STAGES),
    "patch of one slice": plan_of(patch_size=(1, 12, 16), strides=((1, 1, 1), (1, 2, 2)), **TWO_STAGES),
    "down-sampling from the start": plan_of(patch_size=(12, 16, 8), strides=((2, 4, 1), (2, 2, 2)), **TWO_STAGES),
}
MULTIPLES = ((1, 1, 1, 1), (1, 8, 3, 9), (2, 3, 5, 4), (3, 5, 1, 2))
"""Batch, and sizes as multiples of the network's down-sampling."""
TOO_LONG = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
"""Voxels more than such a multiple."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in all formats, signed; its network is residual, supervised deeply and uneven, for two channels."""
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    folder = tmp_path_factory.mktemp("formats")
    run = networked_run(folder, federation(channels=["t1", "t2"], model=EVERYTHING))
    export_model(run, ExportOptions(folder / "model", folder / "kits/server", "all"))
    return folder / "model"


def image_of(plan: Plan, batch: int, counts: Sequence[int], more: Sequence[int] = (0, 0, 0)) -> torch.Tensor:
    sizes = [count * by + plus for count, by, plus in zip(counts, plan.model.divisors, more, strict=True)]
    return torch.randn((batch, plan.model.in_channels, *sizes), generator=torch.Generator().manual_seed(4))


def assert_onnx_is_the_network(path: Path, plan: Plan, network: nn.Module) -> None:
    """Compare an ONNX file with PyTorch for several sizes and batches, and try sizes that do not fit."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path)
    for batch, *counts in MULTIPLES:
        image = image_of(plan, batch, counts)
        [found] = session.run(["logits"], {"image": image.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, network(image).numpy(), atol=1e-4)
    for axis, more in enumerate(TOO_LONG):
        if plan.model.divisors[axis] > 1:
            with pytest.raises(Exception, match=f"the image's sizes must be multiples of {divisors_of(plan)}"):
                session.run(["logits"], {"image": image_of(plan, 1, (4, 4, 4), more).numpy()})


def assert_torchscript_is_the_network(path: Path, plan: Plan, network: nn.Module) -> None:
    """The same of a TorchScript file, which also refuses other channels, and images without a batch."""
    script = torch.jit.load(path)
    for batch, *counts in MULTIPLES:
        image = image_of(plan, batch, counts)
        with torch.no_grad():
            np.testing.assert_allclose(script(image).numpy(), network(image).numpy(), atol=1e-5)
    image = image_of(plan, 1, (4, 4, 4))
    wrong = [image_of(plan, 1, (4, 4, 4), more) for axis, more in enumerate(TOO_LONG) if plan.model.divisors[axis] > 1]
    for other in (image[0], torch.cat([image, image], 1), *wrong):
        with pytest.raises(torch.jit.Error, match=f"with x, y, z multiples of {divisors_of(plan)}"):
            script(other)


def divisors_of(plan: Plan) -> str:
    return ", ".join(map(str, plan.model.divisors))


def test_onnx_is_the_network_for_all_shapes_and_batches(model: Path) -> None:
    bundle = load_bundle(model)
    assert_onnx_is_the_network(model / "models/model.onnx", bundle.plan, bundle.build_model())


def test_torchscript_is_the_network_for_all_shapes_and_batches(model: Path) -> None:
    bundle = load_bundle(model)
    assert_torchscript_is_the_network(model / "models/model.ts", bundle.plan, bundle.build_model())


@pytest.mark.parametrize("kind", NETWORKS)
def test_torchscript_is_every_kind_of_network(kind: str, tmp_path: Path) -> None:
    plan = NETWORKS[kind]
    network = build_model(plan.model).eval()
    write_torchscript(tmp_path, network, plan)
    assert_torchscript_is_the_network(tmp_path / "models/model.ts", plan, network)


@pytest.mark.long
@pytest.mark.parametrize("kind", NETWORKS)
def test_onnx_is_every_kind_of_network(kind: str, tmp_path: Path) -> None:
    plan = NETWORKS[kind]
    network = build_model(plan.model).eval()
    write_onnx(tmp_path, network, plan)
    assert_onnx_is_the_network(tmp_path / "models/model.onnx", plan, network)


def test_every_file_is_named_by_the_manifest_and_verified(model: Path) -> None:
    names = set(parse_manifest(model)[0].files)
    assert names >= {"models/model.onnx", "models/model.onnx.data", "models/model.ts", "configs/inference.json"}
    assert names >= {"model.safetensors", "scripts/transforms.py", "docs/README.md", "configs/metadata_schema.json"}
    assert client(["verify", "--model", str(model)]) == 0
    card = (model / "README.md").read_text()
    assert "- onnx\n" in card and "- torchscript\n" in card and "- monai\n" in card


def test_no_file_tells_of_this_machine(model: Path) -> None:
    traces = re.compile(rb"site-packages|/tmp/|" + re.escape(str(REPOSITORY).encode()))
    for path in (path for path in model.rglob("*") if path.is_file() and path.suffix != ".py"):
        assert not traces.search(path.read_bytes()), path
    with zipfile.ZipFile(model / "models/model.ts") as archive:
        for name in archive.namelist():
            assert not traces.search(archive.read(name)), name


def test_a_format_without_its_packages_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"needs onnx_of_nobody; install the extra \(pip install 'fedvox\[export\]'\)"
    ):
        require_packages("onnx", "json", "onnx_of_nobody")


def test_other_results_than_pytorchs_are_not_passed_on(model: Path) -> None:
    bundle = load_bundle(model)
    same, plan = bundle.build_model(), bundle.plan

    def almost(image: torch.Tensor) -> NDArray[np.float32]:
        with torch.no_grad():
            return same(image).numpy() + np.float32(2e-3)

    with pytest.raises(FedvoxError, match="differs by 0"):
        check_same(Path("model.onnx"), same, plan, almost)


OBLIQUE = ((0, 0.9, 0), (1.1, 0, 0), (0, 0, -1.7))
"""Axes in another order, one of them reversed."""
THICK = ((-1.2, 0, 0), (0, -1.1, 0), (0, 0, 6.0))
"""Flipped axes and thick slices."""


def write_scan(folder: Path, axes: Sequence[Sequence[float]], shape: Sequence[int], files: int) -> list[Path]:
    """Smooth noise of two channels inside of a border of zeros, turned by 0.1 rad, in one file or two; by channel."""
    rng = np.random.default_rng(2)
    inside = np.stack([gaussian_filter(rng.normal(size=shape), 2) for _ in range(2)], axis=-1)
    array = np.pad(np.rint(5000 * inside + 800), ((2, 2), (2, 2), (1, 1), (0, 0))).astype(np.int16)
    turn = np.array([[1, 0, 0], [0, np.cos(0.1), -np.sin(0.1)], [0, np.sin(0.1), np.cos(0.1)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array(axes)
    affine[:3, 3] = (-10, 20, 5)
    folder.mkdir()
    paths = [folder / f"scan_{number:04d}.nii.gz" for number in range(files)]
    for number, path in enumerate(paths):
        nibabel.save(nibabel.Nifti1Image(array[..., number] if files > 1 else array, affine), path)
    return paths


def predicted(model: Path, scan: Sequence[Path], out: Path) -> NDArray[np.uint8]:
    """Label a scan as a hospital does."""
    target = out / "scan.nii.gz" if len(scan) > 1 else out.with_suffix(".nii.gz")
    given = (scan[0].parent, out) if len(scan) > 1 else (scan[0], target)
    options = ("--model", model, "--input", given[0], "--output", given[1], "--precision", "float32", "--device", "cpu")
    assert client(["predict", *map(str, options)]) == 0
    return np.asarray(nibabel.load(target).dataobj)


def assert_same(model: Path, folder: Path, scan: Sequence[Path]) -> None:
    """Check that the only file in a folder is the label map that ``predict`` makes."""
    [found] = folder.iterdir()
    image, expected = nibabel.load(found), predicted(model, scan, folder.parent / "expected")
    labels, stored = np.asarray(image.dataobj), nibabel.load(scan[0])
    assert found.name == "scan_0000_seg.nii.gz"
    assert labels.dtype == np.uint8
    assert image.shape == stored.shape[:3]
    np.testing.assert_allclose(image.affine, stored.affine, atol=1e-5)
    assert np.sort(np.bincount(expected.ravel(), minlength=2))[-2] > 100, "the scan does not tell labels apart"
    assert np.mean(labels == expected) >= 0.999


def run_here(bundle: Path, scan: Sequence[Path], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a MONAI bundle in this process, on a scan of one or several files."""
    monkeypatch.chdir(bundle)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    # Its logging.conf would silence the loggers of other tests.
    given = [str(path) for path in scan] if len(scan) > 1 else str(scan[0])
    run(config_file="configs/inference.json", input=given, output_dir=str(out), logging_file=False)


def test_a_monai_bundle_gives_the_label_map_of_predict(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = write_scan(tmp_path / "scan", OBLIQUE, (26, 33, 22), files=1)
    run_here(model, scan, tmp_path / "out", monkeypatch)
    assert_same(model, tmp_path / "out", scan)


CT: Intensity = {"clip": "window", "lower": 300, "upper": 1500, "normalise": "given", "mean": 900, "std": 320}
PLAIN: Intensity = {"clip": "none", "normalise": "volume"}
PREPARED = {
    "own grid, whole, smaller than a patch, two files": (
        plan_of(2, {"intensity": (CT, {}), "crop": "none"}),
        (OBLIQUE, (20, 24, 4), 2),
    ),
    "thick slices, linear": (
        plan_of(2, {"spacing": (1.0, 1.3, 2.0), "intensity": (PLAIN, CT), "image_order": 1}, residual=True),
        (THICK, (24, 22, 12), 1),
    ),
}


@pytest.mark.parametrize("kind", PREPARED)
def test_a_monai_bundle_prepares_scans_as_predict_does(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, about = PREPARED[kind]
    torch.manual_seed(1)
    network = build_model(plan.model).eval()
    bundle = tmp_path / "bundle"
    # MONAI reads these words too, and must take none for an expression, a reference or a file.
    words = {"federation": "$federation", "description": "%description", "modality": "@modality"}
    save_bundle(bundle, network, plan, words)
    write_torchscript(bundle, network, plan)
    write_monai_bundle(bundle, plan, words)
    scan = write_scan(tmp_path / "scan", *about)
    run_here(bundle, scan, tmp_path / "out", monkeypatch)
    assert_same(bundle, tmp_path / "out", scan)


@pytest.mark.long
@pytest.mark.parametrize("files", [1, 2])
def test_a_monai_bundle_runs_by_itself(files: int, model: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan", OBLIQUE, (26, 33, 22), files)
    bundle = Path(shutil.copytree(model, tmp_path / "bundle"))
    given = str([str(path) for path in scan]) if files > 1 else scan[0]
    arguments = ("--config_file", "configs/inference.json", "--input", given, "--output_dir", tmp_path / "out")
    checks = ("--meta_file", "configs/metadata.json", "--filepath", "configs/metadata_schema.json")
    for command in (("run", *map(str, arguments)), ("verify_metadata", *checks)):
        call = [sys.executable, "-m", "monai.bundle", *command]
        done = subprocess.run(call, cwd=bundle, env=NO_WAY_OUT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert_same(model, tmp_path / "out", scan)


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no \.nii\.gz or \.nii file"):
        cases(str(tmp_path))


def test_scripts_of_a_bundle_need_no_fedvox(model: Path) -> None:
    """Outside of blocks for type checkers they import from each other, and from what the bundle says."""
    scripts = {path.stem: ast.parse(path.read_text()) for path in (model / "scripts").glob("*.py")}
    assert len(scripts) == len(COPIED) + 2
    for name, tree in scripts.items():
        typing = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
        skipped = {inner for block in typing for inner in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node not in skipped:
                package, _, module = (node.module or "").partition(".")
                allowed = {*sys.stdlib_module_names, "numpy", "torch", "monai", "scripts"}
                assert package in allowed, (name, node.module)
                assert package != "scripts" or module in scripts, (name, node.module)


def test_metadata_of_a_bundle_keeps_to_the_schema_that_comes_with_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    metadata = json.loads((model / "configs/metadata.json").read_text())
    schema = json.loads((model / "configs/metadata_schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(metadata, schema)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, NO_WAY_OUT[name])
    verify_metadata(
        meta_file=str(model / "configs/metadata.json"), filepath=str(model / "configs/metadata_schema.json")
    )
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "ball"
    # What MONAI's own schema (meta_schema_20240725) requires.
    monais = {"schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"}
    for key in (*monais, "task", "description", "authors", "copyright", "network_data_format"):
        with pytest.raises(jsonschema.ValidationError, match=key):
            jsonschema.validate({name: value for name, value in metadata.items() if name != key}, schema)
    metadata["network_data_format"]["inputs"]["image"]["num_channels"] = 0
    with pytest.raises(jsonschema.ValidationError, match="minimum"):
        jsonschema.validate(metadata, schema)
