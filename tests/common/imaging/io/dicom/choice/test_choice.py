"""Which series the hospital's rules choose, and why not the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydantic import ValidationError

from common.imaging.io.dicom.choice.choice import Traits, rejections
from common.imaging.io.dicom.choice.rules import SeriesRule
from common.imaging.io.dicom.rules import DicomRules
from tests.dicom_series import CT, make_series, save, series_in

T1 = Traits("series 1", "P", "S", "MR", "T1w post", "BRAIN", True, (("20260131", "101500.000000"),), 20)
OTHER = replace(T1, name="series 2", when=(("20260201", "101500.000000"),), slices=30)


def reasons(series: list[Traits], *rules: SeriesRule) -> list[str]:
    return ["" if one is None else one.reason for one in rejections(series, rules)]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({}, ""),
        ({"modality": "MR", "description": "t1*", "body_part": "Brain", "contrast": True}, ""),
        ({"description": ["FLAIR*", "T?W P?ST"]}, ""),
        ({"description": "T1w p[ao]st"}, "its description is 'T1w post', not T1w p[ao]st"),
        ({"modality": "CT"}, "its modality is 'MR', not CT"),
        ({"description": "T1"}, "its description is 'T1w post', not T1"),
        ({"description": ["T2*", "*FLAIR*"]}, "its description is 'T1w post', not T2* or *FLAIR*"),
        ({"body_part": "KNEE"}, "its body part is 'BRAIN', not KNEE"),
        ({"contrast": False}, "it states a contrast agent"),
    ],
)
def test_a_series_fits_if_all_criteria_do(rule: dict[str, object], reason: str) -> None:
    (found,) = reasons([T1], SeriesRule.model_validate(rule))
    assert found == (f"is not chosen: {reason}" if reason else "")


def test_what_is_not_stated_fits_no_pattern_and_what_is_unknown_every_one() -> None:
    rule = SeriesRule(body_part=("BRAIN",), contrast=True)
    missing, unknown = replace(T1, body_part=""), replace(T1, body_part=None, has_contrast=None)
    plain = replace(T1, has_contrast=False)
    found = reasons([missing, unknown, plain], rule)
    assert found == ["is not chosen: it has no body part", "", "is not chosen: it states no contrast agent"]


def test_a_description_of_pages_fits_nothing_and_is_cut() -> None:
    (found,) = reasons([replace(T1, description="T1" * 5000 + "\x1b")], SeriesRule(description=("T1*",)))
    assert found.startswith("is not chosen: its description is 'T1T1") and len(found) < 150 and "\x1b" not in found


@pytest.mark.parametrize(
    ("choose", "changes", "found"),
    [
        ("all", {}, ["", ""]),
        ("newest", {}, ["is not chosen: series 2 is newer", ""]),
        ("newest", {"when": (("20260131", "101500.000001"),)}, ["is not chosen: series 2 is newer", ""]),
        ("newest", {"when": (("20250131", ""),)}, ["", "is not chosen: series 1 is newer"]),
        ("most_slices", {}, ["is not chosen: series 2 has more slices", ""]),
    ],
)
def test_one_of_those_that_fit_is_chosen(choose: str, changes: dict[str, str], found: list[str]) -> None:
    rule = SeriesRule.model_validate({"choose": choose})
    for order in (1, -1):
        assert reasons([T1, replace(OTHER, **changes)][::order], rule) == found[::order]


@pytest.mark.parametrize(
    ("choose", "changes"),
    [
        ("only", {}),
        ("newest", {"when": (("", ""),)}),
        ("newest", {"when": (("20260131", ""),)}),
        ("newest", {"when": T1.when}),
        ("most_slices", {"slices": 20}),
    ],
)
def test_where_nothing_tells_which_one_nobody_guesses(choose: str, changes: dict[str, object]) -> None:
    found = rejections([T1, replace(OTHER, **changes)], [SeriesRule.model_validate({"choose": choose})])
    assert all(one is not None and one.is_error and "cannot be chosen" in one.reason for one in found)
    assert found[0] is not None and "series 2" in found[0].reason


def test_one_is_chosen_of_each_study_or_of_each_patient() -> None:
    other_study = replace(T1, name="series 3", study="S2", when=(("20250101", ""),))
    other_patient = replace(T1, name="series 4", study="S3", patient="Q", when=(("20240101", ""),))
    series = [T1, OTHER, other_study, other_patient]
    per_study = reasons(series, SeriesRule(choose="newest"))
    assert [not reason for reason in per_study] == [False, True, True, True]
    per_patient = reasons(series, SeriesRule(choose="newest", per="patient"))
    assert [not reason for reason in per_patient] == [False, True, False, True]
    nameless = [replace(one, patient="") for one in series]
    assert reasons(nameless, SeriesRule(choose="newest", per="patient")) == per_study


def test_a_series_is_used_if_any_rule_chooses_it() -> None:
    t2 = replace(T1, name="series 5", description="T2w")
    rules = [SeriesRule(description=("T1*",), choose="newest"), SeriesRule(description=("T2*",))]
    found = reasons([T1, OTHER, t2, replace(T1, description="scout")], *rules)
    assert [not reason for reason in found] == [False, True, True, False]
    assert found[0] == "is not chosen: it fits no rule, or another one that does is chosen"


@pytest.mark.parametrize(
    "rule",
    [
        {"description": ""},
        {"description": " "},
        {"description": "T1\x1b"},
        {"description": []},
        {"description": "x" * 101},
        {"modality": 3},
        {"contrast": "perhaps"},
        {"choose": "best"},
        {"protocol": "T1*"},
    ],
)
def test_a_rule_that_says_nothing_clear_is_refused(rule: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DicomRules.model_validate({"series": rule})


def test_files_of_an_archive_are_chosen_by_what_they_say(tmp_path: Path) -> None:
    """One study: two T1 of which the second is newer, one without contrast, one of another kind, one that is broken."""
    study = make_series()[0].StudyInstanceUID
    common = {"StudyInstanceUID": study, "BodyPartExamined": "HEAD", "ContrastBolusAgent": "9 ml", "PatientID": "P1"}
    t1 = {**common, "SeriesDescription": "t1_mprage", "SeriesDate": "20260131"}
    save(tmp_path / "1", make_series(**t1, SeriesNumber=1, SeriesTime="0915"))
    save(tmp_path / "2", make_series(**t1, SeriesNumber=2, SeriesTime="091500.5"))
    save(tmp_path / "3", make_series(**{**t1, "ContrastBolusAgent": "NONE"}, SeriesNumber=3, SeriesTime="1000"))
    save(tmp_path / "4", make_series(**{**common, "SeriesDescription": "head"}, SeriesNumber=4, kind=CT))
    broken = make_series(**common, SeriesDescription="t2", SeriesNumber=5)
    save(tmp_path / "5", broken[:3] + broken[4:])
    rule = {"modality": "MR", "description": "T1*", "body_part": "HEAD", "contrast": True, "choose": "newest"}
    found = series_in(tmp_path, DicomRules.model_validate({"series": rule}))
    assert [one.refusal for one in found] == [
        "is not chosen: series 2 is newer",
        "",
        "is not chosen: it states no contrast agent",
        "is not chosen: its modality is 'CT', not MR",
        "is not chosen: its description is 't2', not T1*",
    ]
    assert [one.left_out for one in found] == [True, False, True, True, True]
    assert series_in(tmp_path)[4].refusal.startswith("lacks 1 slice")


def test_times_of_one_clock_are_compared_and_no_others() -> None:
    """Both have a time of acquisition; that of the series, which one lacks, is later for all."""
    newest = SeriesRule(choose="newest")
    one = replace(T1, when=(("20260101", "100000"), ("20260101", "080000")))
    other = replace(OTHER, when=(("", ""), ("20260101", "090000")))
    assert reasons([one, other], newest) == ["is not chosen: series 2 is newer", ""]
    found = reasons([one, replace(other, when=(("", ""), ("", "")))], newest)
    assert all("cannot be chosen: its time" in reason for reason in found)


@pytest.mark.parametrize("choose", ["newest", "most_slices", "only"])
def test_nobody_chooses_between_a_series_and_one_that_cannot_be_read(choose: str) -> None:
    unread = replace(T1, name="series 3", when=(), slices=0, body_part=None, has_contrast=None)
    found = rejections([T1, OTHER, unread], [SeriesRule.model_validate({"choose": choose})])
    assert [one is not None and one.is_error for one in found] == [True, True, False]
    assert found[0] is not None and found[0].reason == "cannot be chosen: series 3 fits as well, and cannot be read"
    assert reasons([T1, unread], SeriesRule()) == ["", ""]


def test_the_newest_is_no_older_series_because_the_newest_lacks_a_slice(tmp_path: Path) -> None:
    save(tmp_path / "old", make_series(SeriesDate="20250101", PatientID="P1"))
    new = make_series(SeriesDate="20260101", PatientID="P1")
    save(tmp_path / "new", new[:3] + new[4:])
    save(tmp_path / "scout", make_series(PatientID="P1")[:2])
    found = series_in(tmp_path, DicomRules.model_validate({"series": {"choose": "newest", "per": "patient"}}))
    assert [(one.refusal[:16], one.left_out) for one in found] == [
        ("lacks 1 slice: s", False),
        ("cannot be chosen", False),
        ("has 2 slices, fe", True),
    ]


@pytest.mark.parametrize(
    ("agent", "is_stated"),
    [
        *((text, False) for text in ("", "None", "NO CONTRAST", "no IV", "non contrast", "w/o", "without contrast")),
        *((text, False) for text in ("native", "NATIV", "-", "0", "0.0 ml", "unenhanced", "ohne KM", "N", "n/a")),
        *((text, True) for text in ("Gadovist 9 ml", "NON-IONIC", "nonionic 80 ml", "without and with", "Novalgin")),
    ],
)
def test_words_for_no_contrast_agent_are_none(tmp_path: Path, agent: str, is_stated: bool) -> None:
    coded = pydicom.Dataset()
    coded.CodeMeaning = agent
    for index, values in enumerate(({"ContrastBolusAgent": agent}, {"ContrastBolusAgentSequence": [coded]})):
        if agent or not index:
            save(tmp_path / str(index), make_series(**values))
    found = series_in(tmp_path, DicomRules.model_validate({"series": {"contrast": True}}))
    assert [not one.refusal for one in found] == [is_stated] * len(found)
