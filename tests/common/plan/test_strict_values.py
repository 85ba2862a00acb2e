"""Every number of every file that people write is strict and has a range, and every mistake is put in our own words."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import common.config
import common.plan
from client.consent.site_config import SiteConfig
from common.config.federation import FederationConfig, ModelConfig
from common.config.kit import Kit
from common.models.bundle_file import BundleDescription
from common.plan.base import Frozen
from common.plan.describe_errors import WORDS, describe_validation_error
from common.plan.plan import ModelPlan, Plan

for package in (common.config, common.plan):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

ROOMS = ("common.config.", "common.plan.", "common.models.", "common.imaging.ranges", "client.consent.site_config")


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in model.__subclasses__():
        yield child
        yield from _below(child)


MODELS = sorted(
    {model for model in _below(Frozen) if model.__module__.startswith(ROOMS)}, key=lambda model: model.__name__
)


def _loose(schema: Any, path: str = "") -> list[str]:
    """List the numbers, booleans and numeric words of a core schema that accept more than they should."""
    if isinstance(schema, list | tuple):
        return [found for number, item in enumerate(schema) for found in _loose(item, f"{path}.{number}")]
    if not isinstance(schema, dict):
        return []
    kind = schema.get("type")
    if kind == "function-before" and schema["function"]["function"].__name__ == "whole_number":
        return []
    if kind in ("int", "float", "bool") and not schema.get("strict"):
        return [f"{path}: accepts text or booleans"]
    if kind == "float" and schema.get("allow_inf_nan") is not False:
        return [f"{path}: accepts infinity"]
    if kind in ("int", "float") and not (schema.keys() & {"ge", "gt"} and schema.keys() & {"le", "lt"}):
        return [f"{path}: has no range"]
    if kind == "literal" and any(isinstance(value, int) for value in schema["expected"]):
        return [f"{path}: accepts true for 1"]
    return [found for name, item in schema.items() for found in _loose(item, f"{path}.{name}" if name else path)]


def test_the_models_of_all_files_are_looked_at() -> None:
    assert {FederationConfig, SiteConfig, Kit, Plan, BundleDescription} <= set(MODELS)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_number_is_strict_and_has_a_range(model: type[BaseModel]) -> None:
    assert _loose(model.__pydantic_core_schema__) == []


class _Loose(Frozen):
    model_config = ConfigDict(protected_namespaces=())

    number: int = 1
    share: float = Field(default=0.5, ge=0, le=1, strict=True)
    flag: bool = False
    many: tuple[int, ...] = ()


def test_a_loose_number_would_be_found() -> None:
    assert len(_loose(_Loose.__pydantic_core_schema__)) == 4


BAD: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), -float("inf")),
    *("", "1", "text", "a\x1b[1m", "x" * 500),
    *([], [1], [True], [1.5, 0.5, 9], ["a"], [[0]], [{}], [1] * 500, {}, {"a": 1}, {1: "a"}, {"method": "iid"}),
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_mistake_is_described_in_our_words(model: type[BaseModel]) -> None:
    for content in [{}, {"unknown": 1}, 7, *({name: value} for name in model.model_fields for value in BAD)]:
        try:
            model.model_validate(content)
        except ValidationError as error:
            text = describe_validation_error(error, model, "file.yaml")
            for item in error.errors():
                assert item["type"] in {*WORDS, "extra_forbidden", "union_tag_invalid", "union_tag_not_found"}, item
                if item["type"] != "value_error":
                    assert item["msg"].lower() not in text.lower()
            assert "input should" not in text.lower()
            assert "\x1b" not in text


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"channels": [10**9, 10**9]}, "channels.0: must be at most 4,096 (got 1000000000)"),
        ({"channels": [8] * 11}, "channels: must have at most 10 entries"),
        ({"blocks": 10**9}, "blocks: must be at most 64 (got 1000000000)"),
        ({"patch_size": [10**9, 1, 1]}, "patch_size.0: must be at most 4,096"),
        ({"patch_size": [4096, 4096, 4096]}, "patch_size [4096, 4096, 4096] has 68,719,476,736 voxels, more than"),
    ],
)
def test_a_network_that_no_computer_holds_is_refused_before_it_is_built(
    content: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate(content)
    assert complaint in describe_validation_error(caught.value, ModelConfig, "model")


def test_so_is_one_in_a_plan() -> None:
    for change in ({"channels": [10**9] * 4}, {"blocks": [10**9] * 4}, {"classes": 10**9}, {"in_channels": 10**9}):
        with pytest.raises(ValidationError, match=r"less than or equal to"):
            ModelPlan.model_validate(change)
