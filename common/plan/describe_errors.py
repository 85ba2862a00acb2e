"""Validation errors in our own words, one line per error: the key, the value, and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from common.formatting import visible

PARTITION_METHODS = ("column", "iid", "quantity", "label", "scanner")
"""Tags of the only tagged union in the configuration."""
WORDS: Mapping[str, str] = {
    "bool_type": "must be true or false",
    "dataclass_type": "must be a mapping: {{key: value}}",
    "datetime_from_date_parsing": "must be a date and time",
    "datetime_parsing": "must be a date and time",
    "datetime_type": "must be a date and time",
    "dict_type": "must be a mapping: {{key: value}}",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "has too many digits",
    "int_type": "must be a whole number",
    "invalid_key": "unknown key: keys are words",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "missing": "is missing; add it",
    "model_attributes_type": "must be a mapping: {{key: value}}",
    "model_type": "must be a mapping: {{key: value}}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be text; write it in quotes",
    "timezone_aware": "must have a time zone",
    "too_long": "must have at most {max_length} entries",
    "too_short": "needs at least {min_length} entries",
    "tuple_type": "must be a list: [...]",
    "unexpected_keyword_argument": "unknown key",
    "value_error": "{error}",
}
"""What each kind of error means; the names of the kinds are Pydantic's."""
OTHERWISE = "has a value that cannot be used here"
_NUMBERS = frozenset({"int_type", "float_type"})
_TYPES = _NUMBERS | {"literal_error", "tuple_type", "dict_type", "bool_type", "string_type"}
_UNION_TAG = re.compile(
    r"(?:tuple|list|dict|literal|function-\w+|lax-or-strict|nullable)\[.*|(?:constrained-)?(?:int|float|str)|bool"
)
_NUMBER_TEXT = re.compile(r"[-+]?[0-9][0-9a-fox_:.eE+-]*")


def describe_validation_error(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """Describe each problem in one line: source, key, what is wrong, and the key that was probably meant."""
    problems: dict[tuple[tuple[str, ...], str], dict[str, str]] = {}
    located = [(_location(item), item) for item in error.errors(include_url=False)]
    for key, item in located:
        # A value that may be a word or a list, and is a list with a mistake, is not told to be the word.
        deeper = any(other[: len(key)] == key and len(other) > len(key) for other, _ in located)
        if deeper and item["type"] in _TYPES | {"too_short"}:
            continue
        where, words = _describe(key, item, model)
        problems.setdefault((where, _shown(item)), {}).setdefault(words, item["type"])
    return "\n".join(
        ": ".join([source, *([visible(".".join(where))] if where else []), _joined(said) + shown])
        for (where, shown), said in problems.items()
    )


def _describe(key: tuple[str, ...], item: Any, model: type[BaseModel]) -> tuple[tuple[str, ...], str]:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        guess = difflib.get_close_matches(key[-1], _known_keys(model), n=1)
        return key, "unknown key" + (f"; did you mean {guess[0]}?" if guess else "")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = f" (got {context['tag']!r})" if "tag" in context else ""
        return (*key, context["discriminator"].strip("'")), f"must be one of {', '.join(PARTITION_METHODS)}{given}"
    if kind in _NUMBERS and isinstance(item["input"], str) and _NUMBER_TEXT.fullmatch(item["input"]):
        return key, f"{WORDS[kind]}, in decimal digits and without quotes"
    words = WORDS.get(kind, OTHERWISE).format_map({name: _number(value) for name, value in context.items()})
    return key, words.replace("at least 1 entries", "at least one entry").replace("at most 1 entries", "only one entry")


def _number(value: Any) -> Any:
    return f"{value:,.15g}" if isinstance(value, int | float) else value


def _joined(said: Mapping[str, str]) -> str:
    """Join what each branch of a union says; a value of the right type is not told to be of another."""
    right = [words for words, kind in said.items() if kind not in _TYPES]
    if right:
        return "; ".join(right)
    first, *others = said
    return ", or ".join([first, *(words.removeprefix("must be ") for words in others)])


def _shown(item: Any) -> str:
    value = item["input"]
    if item["type"] in (
        "extra_forbidden",
        "unexpected_keyword_argument",
        "invalid_key",
        "missing",
        "union_tag_invalid",
        "union_tag_not_found",
    ):
        return ""
    if not isinstance(value, str | int | float | bool | None):
        return ""
    text = repr(value) if not isinstance(value, bool | None) else {True: "true", False: "false", None: "null"}[value]
    return f" (got {text if len(text) <= 80 else text[:77] + '...'})"


def _location(item: Any) -> tuple[str, ...]:
    """Return the keys that people wrote: Pydantic adds the tags of unions (``tuple[...]``, a partition's method)."""
    *parts, last = item["loc"] or ("",)
    kept: list[str] = []
    for part in parts if item["type"] == "extra_forbidden" else (*parts, last):
        is_tag = part == "[key]" or (isinstance(part, str) and kept and _UNION_TAG.fullmatch(part))
        is_method = part in PARTITION_METHODS and kept[-1:] == ["partition"]
        if not is_tag and not is_method:
            kept.append(str(part))
    if item["type"] == "extra_forbidden":
        kept.append(str(last))
    return tuple(filter(None, kept))


def _known_keys(model: type[BaseModel], seen: frozenset[type[BaseModel]] = frozenset()) -> list[str]:
    keys = list(model.model_fields)
    for field in model.model_fields.values():
        for part in _models_in(field.annotation):
            if part not in seen:
                keys += _known_keys(part, seen | {model})
    return keys


def _models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
