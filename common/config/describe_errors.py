"""Validation errors as text, one line per error: the key, the value, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

PARTITION_METHODS = ("column", "iid", "quantity", "label", "scanner")
"""Tags of the only tagged union in the configuration."""


def describe_validation_error(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """Describe each problem in one line: source, key, what is wrong, and the key that was probably meant."""
    lines = []
    for item in error.errors(include_url=False):
        # Pydantic puts the tag of a union (``column``, ``tuple[...]``) into the location; users never wrote it.
        location = [str(part) for part in item["loc"] if not _is_union_tag(part)]
        key = ".".join(location) or "(whole file)"
        if item["type"] == "extra_forbidden":
            guess = difflib.get_close_matches(location[-1], _known_keys(model), n=1)
            hint = f"; did you mean {guess[0]}?" if guess else ""
            lines.append(f"{source}: {key}: unknown key{hint}")
        elif item["type"] == "missing":
            lines.append(f"{source}: {key}: is missing; add it")
        elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            # The only tagged union; Pydantic's own message would quote the value twice.
            context, methods = item["ctx"], ", ".join(PARTITION_METHODS)
            given = f" (got {context['tag']!r})" if "tag" in context else ""
            lines.append(f"{source}: {key}.{context['discriminator'].strip(chr(39))}: must be one of {methods}{given}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = item["input"]
            shown = f" (got {value!r})" if isinstance(value, str | int | float | bool | None) else ""
            lines.append(f"{source}: {key}: {message[0].lower()}{message[1:]}{shown}")
    return "\n".join(dict.fromkeys(lines))


def _is_union_tag(part: str | int) -> bool:
    return isinstance(part, str) and (
        part in PARTITION_METHODS or "[" in part or part in {"tuple", "int", "float", "str", "bool"}
    )


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
