"""A federation that starts from a model: found, checked, and part of the federation's identity."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from common.config.federation import FederationConfig, load_federation
from common.config.kit import read_kit
from common.errors import BundleError, ConfigError, DamagedFileError, FedvoxError
from common.models.bundle import load_bundle
from common.models.unet3d import build_model
from common.plan.plan import Plan
from common.planning.resolve import plan_from_config
from server.coordinator.startup import draw_first_weights, read_federation
from server.provisioning.kits import provision
from server.rounds.initial_weights import first_weights, initial_weights, weight_layout, write_initial_weights
from server.run_store.folder import RunFolder, RunState
from tests import tiny
from tests.tiny import save_bundle

NETWORK = """
name: warm
rounds: 2
seed: 3
labels: {1: ball}
channels: [t1]
preprocessing: {spacing: [1, 1, 1]}
model: {channels: [8, 16], groups: 4, patch_size: [16, 16, 16]}
strategy: {min_sites: 2}
network: {address: localhost, port: 9443, sites: [north, south], validation_fraction: 0.25}
"""


def write_bundle(folder: Path, plan: Plan, seed: int = 7) -> Path:
    torch.manual_seed(seed)
    save_bundle(folder, build_model(plan.model), plan, {})
    return folder


def federation(folder: Path, text: str = NETWORK, **values: object) -> FederationConfig:
    path = folder / "federation.yaml"
    path.write_text(text + (yaml.safe_dump(values) if values else ""), encoding="utf-8")
    return load_federation(path)


def plan_of(folder: Path) -> Plan:
    return plan_from_config(federation(folder))


def test_without_a_model_weights_come_from_the_seed(tmp_path: Path) -> None:
    config = federation(tmp_path)
    plan = plan_from_config(config)
    weights, layout = first_weights(config, plan)
    np.testing.assert_array_equal(weights, initial_weights(plan, 3)[0])
    assert layout.shapes == weight_layout(plan).shapes


def test_the_first_weights_are_those_of_the_model(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model", plan_of(tmp_path))
    config = federation(tmp_path, initial_model="model")
    weights, layout = first_weights(config, plan_from_config(config))
    np.testing.assert_array_equal(weights, layout.flatten(load_bundle(tmp_path / "model").weights))


def test_the_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    none = federation(tmp_path).digest()
    write_bundle(tmp_path / "model", plan)
    write_bundle(tmp_path / "elsewhere" / "copy", plan)
    write_bundle(tmp_path / "other", plan, seed=8)
    digests = [
        federation(tmp_path, initial_model=name).digest()
        for name in ("model", "elsewhere/copy", str(tmp_path / "model"), "other")
    ]
    assert digests[0] == digests[1] == digests[2]
    assert len({none, *digests}) == 3


def test_heads_are_drawn_anew_for_other_labels(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    write_bundle(tmp_path / "model", plan)
    text = NETWORK.replace("{1: ball}", "{1: anterior, 2: posterior}")
    config = federation(tmp_path, text, initial_model="model")
    theirs = plan_from_config(config)
    weights, layout = first_weights(config, theirs)
    named, drawn = layout.split(weights), layout.split(initial_weights(theirs, 3)[0])
    kept = load_bundle(tmp_path / "model").weights
    assert any(name.startswith("heads.") for name in named)
    for name, values in named.items():
        source = drawn[name] if name.startswith("heads.") else kept[name].numpy()
        np.testing.assert_array_equal(values, source)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("{channels: [8, 32], groups: 4, patch_size: [16, 16, 16]}", r"model.channels is \[8, 16\].*is \[8, 32\]"),
        ("{channels: [8, 16], groups: 2, patch_size: [16, 16, 16]}", "model.groups is 4, the federation's is 2"),
        ("{channels: [8, 16], groups: 4, patch_size: [16, 16, 16], residual: true}", "model.residual is False"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, change: str, complaint: str) -> None:
    write_bundle(tmp_path / "model", plan_of(tmp_path))
    text = NETWORK.replace("{channels: [8, 16], groups: 4, patch_size: [16, 16, 16]}", change)
    config = federation(tmp_path, text, initial_model="model")
    with pytest.raises(ConfigError, match=complaint):
        first_weights(config, plan_from_config(config))
    with pytest.raises(ConfigError, match=complaint):
        provision(config, tmp_path / "kits")


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"initial_model: .*nowhere does not exist"):
        federation(tmp_path, initial_model="nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"model.safetensors cannot be read .*bundle"):
        federation(tmp_path, initial_model="empty")


def test_a_path_from_the_command_line_starts_where_the_person_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    write_bundle(tmp_path / "here" / "model", plan)
    write_bundle(tmp_path / "model", plan, seed=8)
    monkeypatch.chdir(tmp_path / "here")
    typed = load_federation(tmp_path / "federation.yaml", ["initial_model=model"])
    assert typed.initial_model_sha256 == load_bundle(tmp_path / "here" / "model").sha256
    assert federation(tmp_path, initial_model="model").initial_model_sha256 == load_bundle(tmp_path / "model").sha256


def test_a_model_of_another_hash_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model", plan_of(tmp_path))
    with pytest.raises(ConfigError, match="initial_model_sha256 is 0000"):
        federation(tmp_path, initial_model="model", initial_model_sha256="0" * 64)


def test_a_model_that_changes_afterwards_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    write_bundle(tmp_path / "model", plan)
    config = federation(tmp_path, initial_model="model")
    write_bundle(tmp_path / "model", plan, seed=8)
    with pytest.raises(ConfigError, match="has changed since"):
        first_weights(config, plan)
    (tmp_path / "model" / "model.json").unlink()
    with pytest.raises(BundleError):
        first_weights(config, plan)


def test_a_hash_without_a_model_is_refused(tmp_path: Path) -> None:
    config = federation(tmp_path, initial_model_sha256="0" * 64)
    with pytest.raises(ConfigError, match="initial_model: is missing"):
        first_weights(config, plan_from_config(config))


def test_a_model_without_a_hash_is_no_federation() -> None:
    with pytest.raises(ValueError, match="initial_model_sha256"):
        tiny.federation(initial_model="model")


def test_kits_carry_the_model_to_the_server_and_only_its_hash_to_the_sites(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model", plan_of(tmp_path))
    config = federation(tmp_path, initial_model="model")
    provision(config, tmp_path / "kits")
    site, server = (tmp_path / "kits" / name for name in ("sites/north", "server"))
    (tmp_path / "model" / "model.safetensors").unlink()  # neither kit needs where it came from
    assert str(tmp_path) not in (site / "federation.yaml").read_text(encoding="utf-8")
    assert not list(site.rglob("*.safetensors"))
    assert load_federation(site / "federation.yaml").digest() == read_kit(site, "site").digest == config.digest()
    started = read_federation(server, read_kit(server, "server"))
    plan = Plan.model_validate(json.loads((server / "plan.json").read_text(encoding="utf-8")))
    weights, layout = first_weights(started, plan)
    np.testing.assert_array_equal(weights, layout.flatten(load_bundle(server / "initial_model").weights))


def test_drawn_in_files_they_are_the_same(tmp_path: Path) -> None:
    config = federation(tmp_path)
    plan = plan_from_config(config)
    folder = RunFolder.create(tmp_path / "run")
    write_initial_weights(folder, plan, 3)
    np.testing.assert_array_equal(folder.map_checkpoint(0, weight_layout(plan)), initial_weights(plan, 3)[0])
    assert folder.layout(0).shapes == weight_layout(plan).shapes
    assert [file.name for file in (folder.path / "checkpoints").iterdir()] == ["round_0000.safetensors"]


@pytest.mark.parametrize(
    "content", [b"", b"\1", b"\xff" * 8, b"\2" + bytes(7) + b"[]", b"\x0b" + bytes(7) + b'{"a": [4] }']
)
def test_a_damaged_checkpoint_has_no_layout(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.checkpoint_path(0).write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"round_0000\.safetensors: is missing or damaged"):
        folder.layout(0)


def test_the_model_to_go_on_from_must_be_of_the_plan(tmp_path: Path) -> None:
    config = federation(tmp_path)
    folder = RunFolder.create(tmp_path / "run")
    folder.write_text("federation.yaml", config.resolved())
    folder.write_text("plan.json", plan_from_config(config).model_dump_json())
    draw_first_weights(folder.path)
    folder.commit(RunState(run="1", digest=config.digest(), started="now"))
    drawn = folder.checkpoint_path(0).stat().st_mtime_ns
    draw_first_weights(folder.path)
    assert folder.checkpoint_path(0).stat().st_mtime_ns == drawn
    other = federation(tmp_path, NETWORK.replace("channels: [8, 16]", "channels: [8, 32]"))
    folder.write_text("plan.json", plan_from_config(other).model_dump_json())
    with pytest.raises(FedvoxError, match=r"round_0000\.safetensors: is missing or damaged"):
        draw_first_weights(folder.path)


def test_the_server_app_does_without_torch() -> None:
    """It runs as long as the federation does, and torch takes 150 MB."""
    code = "import sys, server.coordinator.server_app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
