"""Exports in the formats of others: the same results as PyTorch and ``predict``, no pickle, no path of this machine."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import run, verify_metadata
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from client.cli.entry import main as client
from common.errors import ConfigError, FedvoxError
from common.models.bundle import load_bundle
from common.models.export_manifest import parse_manifest
from server.export.export import ExportOptions, export_model
from server.export.monai_bundle import COPIED
from server.export.network_files import check_same, require_packages
from tests.exported import networked_run

REPOSITORY = Path(__file__).resolve().parents[3]
SHAPES = ((1, 16, 16, 16), (2, 8, 24, 12), (3, 2, 4, 2))
"""Batch and voxels; the network's divisors are 2."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in all formats, signed."""
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    folder = tmp_path_factory.mktemp("formats")
    run = networked_run(folder)
    export_model(run, ExportOptions(folder / "model", folder / "kits/server", "all"))
    return folder / "model"


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn((batch, 1, *shape), generator=generator) for batch, *shape in SHAPES]


def logits(model: Path, image: torch.Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        return load_bundle(model).build_model()(image).numpy()


def test_onnx_gives_what_pytorch_gives_for_other_shapes_and_batches(model: Path) -> None:
    import onnx
    import onnxruntime

    onnx.checker.check_model(model / "models/model.onnx")
    session = onnxruntime.InferenceSession(model / "models/model.onnx")
    for image in images():
        [found] = session.run(["logits"], {"image": image.numpy()})
        np.testing.assert_allclose(found, logits(model, image), atol=1e-4)


def test_torchscript_gives_what_pytorch_gives_for_other_shapes_and_batches(model: Path) -> None:
    script = torch.jit.load(model / "models/model.ts")
    for image in images():
        with torch.no_grad():
            np.testing.assert_allclose(script(image).numpy(), logits(model, image), atol=1e-5)


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


def write_scan(path: Path) -> Path:
    """Smooth noise inside of a border of zeros; oblique, with its axes in another order and one of them reversed."""
    rng = np.random.default_rng(2)
    inside = gaussian_filter(rng.normal(size=(26, 33, 22)), 2)
    array = np.pad(np.rint(5000 * inside + 800), 2).astype(np.int16)
    turn = np.array([[1, 0, 0], [0, np.cos(0.1), -np.sin(0.1)], [0, np.sin(0.1), np.cos(0.1)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0.9, 0], [1.1, 0, 0], [0, 0, -1.7]])
    affine[:3, 3] = (-10, 20, 5)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def predicted(model: Path, scan: Path, out: Path) -> NDArray[np.uint8]:
    options = ("--model", model, "--input", scan, "--output", out, "--precision", "float32", "--device", "cpu")
    assert client(["predict", *map(str, options)]) == 0
    return np.asarray(nibabel.load(out).dataobj)


def assert_same(model: Path, found: Path, scan: Path, out: Path) -> None:
    image, expected = nibabel.load(found), predicted(model, scan, out)
    labels = np.asarray(image.dataobj)
    assert labels.dtype == np.uint8
    assert image.shape == nibabel.load(scan).shape
    np.testing.assert_allclose(image.affine, nibabel.load(scan).affine, atol=1e-5)
    assert np.bincount(expected.ravel(), minlength=3).min() > 100, "the scan does not tell labels apart"
    assert np.mean(labels == expected) >= 0.999


def test_a_monai_bundle_gives_the_label_map_of_predict(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    monkeypatch.chdir(model)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    # Its logging.conf would silence the loggers of other tests.
    changes = {"input": str(scan), "output_dir": str(tmp_path / "out"), "logging_file": False}
    run(config_file="configs/inference.json", **changes)
    assert_same(model, tmp_path / "out/scan_seg.nii.gz", scan, tmp_path / "expected.nii.gz")


@pytest.mark.long
def test_a_monai_bundle_runs_by_itself(model: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    bundle = Path(shutil.copytree(model, tmp_path / "bundle"))
    arguments = ("--config_file", "configs/inference.json", "--input", scan, "--output_dir", tmp_path / "out")
    command = [sys.executable, "-m", "monai.bundle", "run", *map(str, arguments)]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(model, tmp_path / "out/scan_seg.nii.gz", scan, tmp_path / "expected.nii.gz")


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


def test_metadata_of_a_bundle_keeps_to_the_schema_that_comes_with_it(model: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    metadata = json.loads((model / "configs/metadata.json").read_text())
    schema = json.loads((model / "configs/metadata_schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(metadata, schema)
    verify_metadata(
        meta_file=str(model / "configs/metadata.json"), filepath=str(model / "configs/metadata_schema.json")
    )
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "ball"
    for key in ("version", "task", "network_data_format"):
        with pytest.raises(jsonschema.ValidationError, match=key):
            jsonschema.validate({name: value for name, value in metadata.items() if name != key}, schema)
    metadata["network_data_format"]["inputs"]["image"]["num_channels"] = 0
    with pytest.raises(jsonschema.ValidationError, match="minimum"):
        jsonschema.validate(metadata, schema)
