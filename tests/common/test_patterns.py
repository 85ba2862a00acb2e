"""Patterns for whole texts."""

from __future__ import annotations

import pytest

from common.patterns import matches


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("t1*", "t1", True),
        ("t1*", "t1 post", True),
        ("t1*", "a t1", False),
        ("t?", "t1", True),
        ("t?", "t", False),
        ("t?", "t12", False),
        ("*[1]*", "mpr [1]", True),
        ("*[1]*", "mpr 1", False),
        ("[!1]", "2", False),
        ("[!1]", "[!1]", True),
        ("T1", "t1", False),
        ("a.c", "abc", False),
        ("*", "", True),
        ("*", "two\nlines", True),
    ],
)
def test_only_stars_and_question_marks_have_a_meaning(pattern: str, text: str, expected: bool) -> None:
    assert matches(pattern, text) is expected
