from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from common.errors import BundleError, OutputError
from common.models.bundle import load_bundle
from common.models.unet3d import build_model
from common.plan.plan import ModelPlan, Plan, PreprocessingPlan
from tests.tiny import save_bundle

PLAN = Plan(
    channels=("MR",),
    labels={1: "anterior", 2: "posterior"},
    preprocessing=PreprocessingPlan(spacing=(1.0, 1.0, 2.0)),
    model=ModelPlan(
        classes=3,
        channels=(4, 8),
        strides=((1, 1, 1), (2, 2, 2)),
        kernels=((3, 3, 3), (3, 3, 3)),
        blocks=(1, 1),
        decoder_blocks=1,
        groups=2,
    ),
    patch_size=(8, 8, 8),
    mirror_axes=(0,),
)
PROVENANCE = {"name": "first", "round": 7, "mean_dice": 0.87, "sites": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_bundle(tmp_path / "model", build_model(PLAN.model), PLAN, PROVENANCE)
    return tmp_path / "model"


def _edit(folder: Path, change: Any) -> None:
    """Changes the parsed description in place and writes it back."""
    path = folder / "model.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _replace_weights(folder: Path, data: bytes) -> None:
    """Puts other bytes in place, with a description that says the right size and SHA-256."""
    (folder / "model.safetensors").write_bytes(data)
    _edit(folder, lambda c: c["weights"].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))


def test_comes_back_as_it_was(tmp_path):
    torch.manual_seed(1)
    model = build_model(PLAN.model).eval()
    save_bundle(tmp_path / "a" / "model", model, PLAN, PROVENANCE)
    bundle = load_bundle(tmp_path / "a" / "model")
    assert bundle.plan == PLAN
    assert bundle.provenance == PROVENANCE
    assert bundle.sha256 == hashlib.sha256((tmp_path / "a" / "model" / "model.safetensors").read_bytes()).hexdigest()
    rebuilt = bundle.build_model()
    assert not rebuilt.training
    scan = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(rebuilt(scan), model(scan), rtol=0, atol=0)


def test_two_files_and_nothing_else(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_description_says_how_many_parameters(folder):
    expected = sum(parameter.numel() for parameter in build_model(PLAN.model).parameters())
    assert json.loads((folder / "model.json").read_text())["weights"]["parameters"] == expected


def test_saving_again_replaces(folder):
    save_bundle(folder, build_model(PLAN.model), PLAN, {"round": 8})
    assert load_bundle(folder).provenance == {"round": 8}


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(folder, name, keep):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(BundleError, match=f"{name}: .*copy the bundle again"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: is missing"):
        load_bundle(folder)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BundleError, match="there is no such folder"):
        load_bundle(tmp_path / "nowhere")


def test_one_changed_byte_is_refused(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        load_bundle(folder)


def test_weights_made_for_another_number_of_channels_are_refused(folder):
    def two_channels(content):
        content["plan"]["channels"] = ["T1", "T2"]
        content["plan"]["model"]["in_channels"] = 2
        content["plan"]["preprocessing"]["intensity"] *= 2

    _edit(folder, two_channels)
    with pytest.raises(BundleError, match=r"does not fit the plan.*shape \(4, 1, 3, 3, 3\).*needs \(4, 2, 3, 3, 3\)"):
        load_bundle(folder)


def test_missing_and_unknown_weights_are_refused(folder):
    weights = load_bundle(folder).weights
    removed = sorted(weights)[0]
    _replace_weights(folder, save({name: tensor for name, tensor in weights.items() if name != removed}))
    with pytest.raises(BundleError, match=f"lack {removed}"):
        load_bundle(folder)
    _replace_weights(folder, save({**weights, "extra": torch.zeros(1)}))
    with pytest.raises(BundleError, match="hold unknown extra"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda t: t.double(), "torch.float64"), (lambda t: t * float("nan"), "NaN or infinite")],
)
def test_weights_that_are_not_finite_float32_are_refused(folder, change, message):
    weights = load_bundle(folder).weights
    name = sorted(weights)[0]
    _replace_weights(folder, save({**weights, name: change(weights[name])}))
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("sprung"),))


def test_a_pickle_is_refused_and_never_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _replace_weights(folder, pickle.dumps(_Trap()))
    with pytest.raises(BundleError, match="not a safetensors file"):
        load_bundle(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "not a Fedvox model description"),
        (lambda c: c.update(format_version=2), "format version 2.*reads version 1"),
        (lambda c: c.pop("plan"), "plan: is missing"),
        (lambda c: c.update(surprise=1), "surprise: unknown key"),
        (lambda c: c["plan"].update(patch_size=[7, 8, 8]), "plan: .*multiple of"),
        (lambda c: c["weights"].update(parameters=5), "parameters, model.json says 5"),
        (lambda c: c["plan"]["model"].update(channels=[10**9] * 2), "channels.0: must be at most 4,096"),
        (lambda c: c["plan"]["model"].update(blocks=[10**9] * 2), "blocks.0: must be at most 64"),
        (lambda c: c["plan"]["model"].update(classes=10**9), "classes: must be at most 1,024"),
        (lambda c: c["plan"]["model"].update(kernels=[[10**9] * 3] * 2), "kernels.0.0: must be 1, 3 or 5"),
        (lambda c: c["plan"].update(patch_size=[10**9, 8, 8]), "patch_size.0: must be at most 4,096"),
        (lambda c: c["plan"].update(patch_size=[4096, 4096, 4096]), "68,719,476,736 voxels"),
    ],
)
def test_a_description_with_wrong_content_is_refused(folder, change, message):
    _edit(folder, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


@pytest.mark.parametrize(
    "text", ["[" * 10_000, '{"format": ' * 10_000, '{"plan": ' + "[" * 10_000 + "]" * 10_000 + "}"]
)
def test_a_description_that_is_nested_without_end_is_refused(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(BundleError, match=r"model\.json: is not complete JSON"):
        load_bundle(folder)


def test_json_that_is_no_object_is_refused(folder):
    (folder / "model.json").write_text("[]")
    with pytest.raises(BundleError, match="not a Fedvox model description"):
        load_bundle(folder)


def test_weights_that_diverged_are_not_saved(tmp_path):
    model = build_model(PLAN.model)
    with torch.no_grad():
        next(model.parameters()).fill_(float("inf"))
    with pytest.raises(BundleError, match=r"cannot be saved.*NaN or infinite"):
        save_bundle(tmp_path / "model", model, PLAN, {})
    assert not (tmp_path / "model").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="choose another"):
        save_bundle(tmp_path / "file" / "model", build_model(PLAN.model), PLAN, {})
