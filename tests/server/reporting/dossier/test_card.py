"""The dossier has the card of the model that was released, and none if that model is not as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from server.cli.entry import main
from server.reporting.dossier.contents import compose
from server.reporting.dossier.facts import gather
from server.reporting.dossier.write import files_of, write_dossier
from tests.exported import networked_run
from tests.server.reporting.dossier.runs import write_network_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networked_run(tmp_path_factory.mktemp("released"))


def test_the_card_is_the_one_that_export_writes(run: Path, tmp_path: Path) -> None:
    write_dossier(run, tmp_path / "dossier")
    assert main(["export", str(run), "--out", str(tmp_path / "model")]) == 0
    card = (tmp_path / "dossier/model-card.md").read_bytes()
    assert card == (tmp_path / "model/README.md").read_bytes()
    assert "(model-card.md)" in (tmp_path / "dossier/README.md").read_text()
    assert 'href="model-card.md"' in (tmp_path / "dossier/dossier.html").read_text()


def cut_weights(run: Path) -> None:
    (run / "model/model.safetensors").write_bytes(b"others")


def other_description(run: Path) -> None:
    file = run / "model/model.json"
    content = json.loads(file.read_text())
    content["weights"]["sha256"] = "0" * 64
    file.write_text(json.dumps(content))


def no_description(run: Path) -> None:
    (run / "model/model.json").write_text("{}")


def no_state(run: Path) -> None:
    (run / "state.json").unlink()
    other_description(run)


def edited_log(run: Path) -> None:
    file = run / "audit.jsonl"
    file.write_text(file.read_text().replace('"round":1', '"round":2'))


@pytest.mark.parametrize("harm", [cut_weights, other_description, no_description, no_state, edited_log])
def test_no_card_is_made_for_what_was_not_released(harm: Callable[[Path], None], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    harm(tmp_path / "run")
    dossier = compose(gather(tmp_path / "run"))
    assert dossier.card is None
    files = files_of(dossier)
    assert "model-card.md" not in files
    assert "There is no model card: " in files["evidence.md"]


def test_a_run_without_a_model_has_no_card(tmp_path: Path) -> None:
    files = files_of(compose(gather(write_network_run(tmp_path / "run"))))
    assert "model-card.md" not in files
    assert "There is no released model, so there is no model card yet." in files["evidence.md"]
