"""Building blocks of plans and federation files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Axes3 = tuple[int, int, int]


Spacing = tuple[float, float, float]


PositiveInt = Annotated[int, Field(ge=1)]


Kernel = tuple[Literal[1, 3, 5], Literal[1, 3, 5], Literal[1, 3, 5]]


Stride = tuple[Literal[1, 2, 4], Literal[1, 2, 4], Literal[1, 2, 4]]


class Frozen(BaseModel):
    """Base of all plan and configuration models: immutable; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
