"""Codes of labels: from the federation file to the plan, and nowhere lost."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.config.federation import FederationConfig, load_federation
from common.errors import ConfigError
from common.models.bundle_file import BundleDescription
from common.plan.base import Code
from common.plan.plan import Plan
from common.planning.resolve import check_plan, plan_from_config
from tests import tiny

LIVER, TUMOUR = Code(scheme="SCT", value="10200004", meaning="Liver"), Code(scheme="99X", value="T", meaning="Tumour")
CODED = """
name: coded
rounds: 1
channels: [ct]
labels:
  1: {name: liver, code: [SCT, 10200004, Liver]}
  2: vessel
  3: {name: tumour, code: {scheme: 99X, value: T, meaning: Tumour}}
preprocessing: {spacing: [1, 1, 1]}
model: {channels: [8, 16], groups: 4, patch_size: [16, 16, 16]}
"""


def _load(folder: Path, text: str = CODED) -> FederationConfig:
    path = folder / "federation.yaml"
    path.write_text(text, encoding="utf-8")
    return load_federation(path)


def test_both_forms_are_read(tmp_path: Path) -> None:
    config = _load(tmp_path)
    assert config.label_names == {1: "liver", 2: "vessel", 3: "tumour"}
    assert config.label_codes == {1: LIVER, 3: TUMOUR}


def test_a_federation_without_codes_is_written_as_before(tmp_path: Path) -> None:
    config = _load(tmp_path, "{name: short, rounds: 1, labels: {1: liver}}")
    assert config.model_dump(mode="json")["labels"] == {"1": "liver"}
    assert config.label_codes == {}


def test_the_resolved_file_reads_back_with_its_codes(tmp_path: Path) -> None:
    config = _load(tmp_path)
    again = _load(tmp_path, config.resolved())
    assert (again, again.digest()) == (config, config.digest())


def test_another_code_is_another_federation(tmp_path: Path) -> None:
    assert _load(tmp_path).digest() != _load(tmp_path, CODED.replace("10200004", "10200005")).digest()


def test_codes_reach_the_plan_and_sites_check_them(tmp_path: Path) -> None:
    config = _load(tmp_path)
    plan = plan_from_config(config)
    assert plan.label_codes == {1: LIVER, 3: TUMOUR}
    check_plan(Plan.model_validate_json(plan.model_dump_json()), config)
    with pytest.raises(ConfigError, match="does not follow"):
        check_plan(plan.model_copy(update={"label_codes": {1: LIVER}}), config)


def test_a_model_carries_them_and_one_from_before_reads_without() -> None:
    plan = Plan.model_validate(tiny.plan().model_dump() | {"label_codes": {1: LIVER}})
    assert json.loads(plan.model_dump_json())["label_codes"]["1"]["value"] == "10200004"
    assert BundleDescription.model_fields["plan"].annotation is Plan
    before = tiny.plan().model_dump()
    del before["label_codes"]
    assert Plan.model_validate(before).label_codes == {}


@pytest.mark.parametrize(
    ("codes", "complaint"),
    [
        ({2: LIVER}, "label_codes has label 2, which labels has not"),
        ({1: LIVER, 2: LIVER}, "labels 1 and 2 have the same code"),
        ({1: {"scheme": "SCT", "value": "1", "meaning": "a\nb"}}, "printable"),
    ],
)
def test_a_plan_with_codes_that_cannot_be_is_refused(codes: object, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Plan.model_validate(tiny.plan().model_dump() | {"label_codes": codes})


def test_a_label_with_a_name_and_no_code_is_told_the_short_form(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"labels\.1: has no code: add it .*, or write the name alone, as 1: liver"):
        _load(tmp_path, "{name: short, rounds: 1, labels: {1: {name: liver}}}")
