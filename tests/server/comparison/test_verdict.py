"""A comparison says in words which algorithm beats FedAvg, by what margin, or that none does."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from server.comparison.statistics import bootstrap, holm, wilcoxon_p
from server.comparison.verdict import verdict

ARMS = [{"arm": name, "data": data} for name, data in (("pooled", "pooled"), ("a", "sites"), ("b", "sites"))]


def against(**differences: list[float]) -> list[dict[str, Any]]:
    """Rows as the results have them, from the differences of every arm's patients."""
    values = {arm: np.array(found) for arm, found in differences.items()}
    corrected = holm({arm: wilcoxon_p(found) for arm, found in values.items()})
    intervals = {arm: bootstrap([found[:, None]], lambda means: means[..., 0]) for arm, found in values.items()}
    return [
        {"arm": arm, "difference": None if found is None else vars(found), "p_holm": corrected[arm]}
        for arm, found in intervals.items()
    ]


BETTER = [0.02, 0.03] * 10
EQUAL = [0.02, -0.02] * 10
FEW = [0.02, 0.03]


def test_an_arm_beyond_its_interval_beats_it_and_says_by_how_much() -> None:
    said = verdict(ARMS, against(pooled=BETTER, a=EQUAL, b=BETTER), "fedavg", True)
    assert said is not None
    interval = r"95 % interval \+0\.02[0-4]\d to \+0\.02[6-9]\d"
    assert re.fullmatch(rf"b beats fedavg by \+0\.0250 Dice \({interval}, 20 patients, p < 0\.001 after Holm\)\.", said)


@pytest.mark.parametrize(("a", "b"), [(EQUAL, EQUAL), (EQUAL, [-0.02] * 20), (FEW, EQUAL)])
def test_without_such_an_arm_none_beats_it(a: list[float], b: list[float]) -> None:
    """Two patients tell nothing, whatever their interval says."""
    said = verdict(ARMS, against(pooled=BETTER, a=a, b=b), "fedavg", True)
    assert said is not None
    assert said.startswith("No algorithm beats fedavg: the best of 2 others, a, differs by ")


def test_what_is_not_finished_is_said_so_and_nothing_is_said_of_baselines_alone() -> None:
    said = verdict(ARMS[:2], against(pooled=BETTER, a=[0.01]), "fedavg", False)
    assert said == (
        "As far as runs are finished: No algorithm beats fedavg: a differs by +0.0100 Dice "
        "(no interval, 1 patient, p 1.000 after Holm)."
    )
    assert verdict(ARMS, against(pooled=BETTER), "fedavg", True) is None
