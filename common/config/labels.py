"""``labels`` in the federation file: the name of each label, and what it means in words that other systems know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from common.formatting import counted
from common.plan.base import Code, Frozen, LabelValue, Name, ValueFirst, check_codes_differ


class CodedLabel(Frozen):
    """A label with its code, by which it is found in DICOM objects, and by which results are coded."""

    name: Name
    code: Code

    @model_validator(mode="before")
    @classmethod
    def _require_code(cls, given: Any) -> Any:
        if isinstance(given, dict) and "code" not in given:
            raise ValueError("has no code: add it (code: [SCT, 10200004, Liver]), or write the name alone, as 1: liver")
        return given


# Tags as Pydantic itself names the types: descriptions of errors leave those out.
_SHORT, _LONG = "str", "dict[label]"


def _form(value: Any) -> str:
    return _LONG if isinstance(value, dict | CodedLabel) else _SHORT


_Label = Annotated[Annotated[Name, Tag(_SHORT)] | Annotated[CodedLabel, Tag(_LONG)], Discriminator(_form)]


def codes_of(table: Mapping[int, str | CodedLabel] | None) -> dict[int, Code]:
    """Return the codes of the labels that have one."""
    return {value: label.code for value, label in (table or {}).items() if isinstance(label, CodedLabel)}


def names_of(table: Mapping[int, str | CodedLabel] | None) -> dict[int, str] | None:
    """Return the names of all labels; None without labels."""
    if table is None:
        return None
    return {value: label.name if isinstance(label, CodedLabel) else label for value, label in table.items()}


def check_class_weights(weights: Sequence[float] | None, labels: int) -> None:
    """Check that there is one weight for the background and one for each label.

    Raises
    ------
    ValueError
        There are more or fewer.
    """
    if weights is not None and len(weights) != labels + 1:
        raise ValueError(
            f"training.class_weights has {counted(len(weights), 'entry', 'entries')}, but there are "
            f"{counted(labels, 'label')} and the background; write {labels + 1}"
        )


def _check_codes(table: dict[int, str | CodedLabel]) -> dict[int, str | CodedLabel]:
    check_codes_differ(codes_of(table))
    return table


LabelTable = Annotated[dict[LabelValue, _Label], Field(min_length=1), ValueFirst, AfterValidator(_check_codes)]
"""Value in the label maps -> name, or name and code; foreground only."""
