"""The bill of materials follows CycloneDX's schema, and holds what the run recorded and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

import common
from server.reporting.dossier.facts import gather
from server.reporting.dossier.sbom import bill_of_materials, components_of, software
from tests.server.reporting.dossier.runs import change_summary, ready, write_network_run
from tests.server.run_folder import write_json_lines, write_run_folder

PACKAGES = {"numpy": "0.0.1", "Jinja2": "0.0.2", "torch": "2.13.0", "zope.interface": "7.0+local"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_network_run(tmp_path_factory.mktemp("sbom") / "run")
    change_summary(folder, packages=PACKAGES)
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    return folder


def problem(text: str) -> str | None:
    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    return None if found is None else str(found)[:500]


def places(run: Path) -> Mapping[str, tuple[str, ...]]:
    return {item.reference: item.used_at for item in components_of(gather(run))}


def test_the_bill_follows_the_schema(run: Path) -> None:
    text = bill_of_materials(gather(run))
    assert problem(text) is None
    assert problem(text.replace('"library"', '"book"')) is not None
    for item in components_of(gather(run)):
        assert PackageURL.from_string(item.reference).version == item.version


def test_versions_are_those_of_the_run(run: Path) -> None:
    found = places(run)
    assert found["pkg:pypi/numpy@0.0.1"] == ("coordinator",)
    assert found["pkg:pypi/zope-interface@7.0%2Blocal"] == ("coordinator",)
    assert found["pkg:pypi/flwr@1.41.0"] == ("coordinator", "north", "south", "west")
    assert found["pkg:pypi/torch@2.12.0%2B5"] == ("north", "south")
    assert found["pkg:generic/python@3.12.1"] == ("north", "south", "west")
    recorded = {*PACKAGES.values(), "0.1.0", "1.41.0", "3.11.9", "3.12.1", "2.12.0+5", "2.12.0+4"}
    assert {item.version for item in components_of(gather(run))} == recorded


def test_the_bill_calls_itself_incomplete_and_names_the_model(run: Path) -> None:
    content: dict[str, Any] = json.loads(bill_of_materials(gather(run)))
    assert [item["aggregate"] for item in content["compositions"]] == ["incomplete"]
    (of_model,) = content["dependencies"]
    assert of_model["ref"] == content["metadata"]["component"]["bom-ref"]
    assert of_model["dependsOn"] == [item["bom-ref"] for item in content["components"]]
    (tool,) = content["metadata"]["tools"]["components"]
    assert (tool["name"], tool["version"]) == ("fedvox", common.__version__)
    (digest,) = content["metadata"]["component"]["hashes"]
    assert digest["content"] == gather(run).files["model/model.safetensors"]


def test_a_run_without_records_has_an_empty_bill(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    assert {item.name for item in components_of(gather(folder))} == {"fedvox", "flwr", "torch", "python"}
    assert "has no list of packages" in next(software(gather(folder)).statements).text
    (folder / "summary.json").unlink()
    text = bill_of_materials(gather(folder))
    assert problem(text) is None
    assert json.loads(text)["components"] == []
    assert next(software(gather(folder)).statements).text == "The run has recorded no versions yet."


def test_what_a_site_reports_stays_a_value(tmp_path: Path) -> None:
    folder = write_network_run(tmp_path / "run")
    odd = {"torch": "1?x=\x1b[0m#'\"/../", "": "1", "flwr": 7, "a" * 5000: "b" * 5000}
    events = [
        {"event": "started", "engine": "network"},
        ready("north") | {"versions": odd},
        ready("x") | {"versions": 3},
    ]
    write_json_lines(folder / "events.jsonl", events)
    text = bill_of_materials(gather(folder))
    assert problem(text) is None
    assert "\\u001b" not in text
    assert "pkg:pypi/torch@1%3Fx%3D%5Cx1b%5B0m%23%27%22%2F..%2F" in text
    assert len(text) < 10_000
