"""Numbers as people read them."""

import pytest

from common.formatting import counted, fixed


def test_one_is_not_many() -> None:
    assert [counted(number, "round") for number in (0, 1, 2, 1000)] == [
        "0 rounds",
        "1 round",
        "2 rounds",
        "1,000 rounds",
    ]
    assert [counted(number, "entry", "entries") for number in (1, 2)] == ["1 entry", "2 entries"]


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (-0.0004, True, "0.000"),
        (-0.0, True, "0.000"),
        (0.0004, True, "0.000"),
        (-0.0004, False, "0.000"),
        (-0.0006, True, "−0.001"),
        (0.25, True, "+0.250"),
        (0.25, False, "0.250"),
    ],
)
def test_zero_has_no_sign(value: float, signed: bool, text: str) -> None:
    assert fixed(value, 3, signed) == text
