"""Numbers and texts as people read them."""

import csv
import io

import pytest

from common.formatting import counted, csv_text, fixed, visible


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Köln 3\N{MULTIPLICATION SIGN}", "Köln 3\N{MULTIPLICATION SIGN}"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\nfedvox: all is well\r", r"a\nfedvox: all is well\r"),
        ("\x9b31m\x7f\x00\t", r"\x9b31m\x7f\x00\t"),
        ("left\N{RIGHT-TO-LEFT OVERRIDE}thgir", r"left\u202ethgir"),
        ("\ud800", r"\ud800"),
    ],
)
def test_a_terminal_obeys_nothing_that_is_named(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(text, keep="\n") == shown.replace(r"\n", "\n")


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        *((name, f"'{name}") for name in ("=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("x")')),
        ("\t=1", r"\t=1"),
        ("\r=1", r"\r=1"),
        ("-\x1b[2J", r"'-\x1b[2J"),
        ("a=1", "a=1"),
    ],
)
def test_no_cell_is_a_formula(name: str, cell: str) -> None:
    text = io.StringIO()
    csv.writer(text).writerow([csv_text(name)])
    assert list(csv.reader(io.StringIO(text.getvalue(), newline=""))) == [[cell]]
