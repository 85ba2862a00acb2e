"""Patients named by their cases: a regular expression that finds the patient in a case's name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from common.errors import DataError

GROUP = "patient"


def compile_rule(text: str) -> re.Pattern[str]:
    """Compile a rule: a regular expression whose only named group is ``patient``.

    Raises
    ------
    ValueError
        It is not a regular expression, or it has other groups.
    """
    try:
        rule = re.compile(text)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    if list(rule.groupindex) != [GROUP] or rule.groups != 1:
        raise ValueError(f"must have one group, (?P<{GROUP}>...); write other groups as (?:...)")
    return rule


def patients_by_name(cases: Iterable[str], rule: re.Pattern[str], root: Path) -> dict[str, str]:
    """Return the patient of every case, by its name.

    Parameters
    ----------
    cases
        Names of the cases; the rule must match each of them as a whole.
    rule
        From ``compile_rule``.
    root
        The dataset folder, for errors.

    Raises
    ------
    DataError
        The rule does not match a name, or finds an empty patient in it.
    """
    found = {}
    for case in cases:
        match = rule.fullmatch(case)
        if match is None or not match[GROUP]:
            raise DataError(root, f"the site file's rule for patients ({rule.pattern}) finds none in the name {case!r}")
        found[case] = match[GROUP]
    return found
