"""The ``personal`` section of a federation file: a personal model at every site, which never leaves it.

What sites do is in ``client/training/personal.py``, with the papers.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from common.plan.base import Frozen, NonNegativeFloat, PositiveInt

Method = Literal["norms", "ditto"]
DITTO_LAMBDA = 0.1


class PersonalConfig(Frozen):
    """How a site's personal model differs from the global one; goes with every ``strategy.name``.

    Attributes
    ----------
    method
        ``norms``: every site keeps its own scales and shifts of the norm layers, and shares all other weights.
        ``ditto``: every site trains a second model of its own, which stays near the global one.
    ditto_lambda
        How near (``ditto``): weight of half the squared distance to the global model. 0 trains alone.
    steps
        Steps per round of the second model (``ditto``); by default ``training.local_steps``.
    """

    method: Method
    ditto_lambda: NonNegativeFloat | None = None
    steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _no_option_of_another_method(self) -> Self:
        for option in ("ditto_lambda", "steps"):
            if self.method != "ditto" and getattr(self, option) is not None:
                raise ValueError(f"{option} is an option of ditto, and method is {self.method}; remove it")
        return self

    @property
    def strength(self) -> float:
        """Return ``ditto_lambda`` or its default."""
        return DITTO_LAMBDA if self.ditto_lambda is None else self.ditto_lambda


def own_steps(personal: PersonalConfig | None, local_steps: int) -> int:
    """Return how many steps a site trains a second model in a round that has ``local_steps``; 0 without one."""
    if personal is None or personal.method != "ditto":
        return 0
    return personal.steps or local_steps


def check_personal(personal: PersonalConfig | None, trainable: str) -> None:
    """Refuse own norm layers where there are none to train, or nothing else.

    Parameters
    ----------
    personal
        The section.
    trainable
        ``training.trainable``.

    Raises
    ------
    ValueError
        Names both keys and what to write.
    """
    if personal is None or personal.method != "norms":
        return
    if trainable == "norms":
        raise ValueError(
            "personal.method norms keeps the norm layers at the sites, and training.trainable norms trains nothing "
            "else: no weight would be shared; train more, or remove personal"
        )
    if trainable == "head":
        raise ValueError(
            "personal.method norms keeps the norm layers at the sites, and training.trainable head never trains them; "
            "write head_and_norms, or remove personal"
        )
