"""A known-bad reply for every reason to refuse one."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.privacy import PrivacyConfig
from common.errors import ProtocolError
from common.protocol.codec import Refusal, Result, SiteInfo, Task
from common.weights.encoding import VALUES_PER_PIECE, Encoding, encode_vector, vector_of
from common.weights.layout import WeightLayout
from common.weights.part import norm_part
from common.weights.store import digest_of
from server.rounds.admission import RefusedError, admit, admit_personal_score, judge_norms, measure

MODEL, UPDATE = "a" * 64, "b" * 64
TASK = Task(run="r1", digest="d", round=2, rounds=5, train=True, model=MODEL)
INFO = SiteInfo("a", 8, 2, "0.1.0", "1.41.0", "2.13.0", "3.11.7", "cpu", "bfloat16")
GOOD = Result(
    site="a",
    run="r1",
    round=2,
    examples=8,
    validation_examples=2,
    steps=4,
    train_loss=0.5,
    validation_loss=0.7,
    dice={1: 0.5, 2: math.nan},
    seconds=2.0,
    seconds_data=0.1,
    seconds_compute=1.5,
    seconds_evaluate=0.4,
    update=UPDATE,
)
SCORED = replace(GOOD, train_loss=math.nan, steps=0, update=None)
ONLY_SCORES = replace(TASK, train=False)


def content_of(vector: np.ndarray, encoding: Encoding = "float32") -> np.ndarray:
    """The bytes of the file that an update becomes."""
    return np.concatenate([data for _, data in encode_vector(vector.astype(np.float32), encoding)])


def measured(content: np.ndarray, size: int, encoding: Encoding) -> float:
    return measure(content, digest_of(content), size, encoding)


def test_a_good_reply_is_admitted() -> None:
    admit(GOOD, TASK, INFO, {1, 2}, range(1, 5))
    admit(SCORED, ONLY_SCORES, INFO, {1, 2})
    nobody = {"validation_examples": 0}
    alone = replace(GOOD, **nobody, validation_loss=math.nan, dice={1: math.nan, 2: math.nan})  # type: ignore[arg-type]
    admit(alone, TASK, replace(INFO, **nobody), {1, 2})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"site": "b"}, "wrong-site"),
        ({"run": "r0"}, "wrong-run"),
        ({"round": 1}, "wrong-round"),
        ({"dice": {1: 0.5}}, "wrong-labels"),
        ({"dice": {1: 0.5, 2: 0.5, 3: 0.5}}, "wrong-labels"),
        ({"examples": 8000}, "examples-differ"),
        ({"validation_examples": 3}, "examples-differ"),
        ({"seconds": -1.0}, "number-out-of-range"),
        ({"seconds": 1e9}, "number-out-of-range"),
        ({"seconds_data": math.nan}, "number-out-of-range"),
        ({"train_loss": math.nan}, "number-out-of-range"),
        ({"train_loss": -1.0}, "number-out-of-range"),
        ({"train_loss": 1e7}, "number-out-of-range"),
        ({"validation_loss": math.nan}, "number-out-of-range"),
        ({"validation_loss": -1.0}, "number-out-of-range"),
        ({"epsilon": -1.0}, "number-out-of-range"),
        ({"steps": 0}, "number-out-of-range"),
        ({"steps": 5}, "number-out-of-range"),
    ],
)
def test_a_bad_number_is_refused(change: dict[str, object], code: str) -> None:
    with pytest.raises(RefusedError, match=code):
        admit(replace(GOOD, **change), TASK, INFO, {1, 2}, range(1, 5))  # type: ignore[arg-type]


def test_the_score_of_a_site_s_own_model_is_admitted_where_it_was_asked_for() -> None:
    own = replace(GOOD, local_dice=0.5)
    for asked in (GOOD, own):
        admit(asked, TASK, INFO, {1, 2}, range(1, 5), scores_own=True)
    nobody = {"validation_examples": 0, "validation_loss": math.nan, "dice": {1: math.nan, 2: math.nan}}
    for reply, task, info, scores_own in (
        (own, TASK, INFO, False),
        (replace(SCORED, local_dice=0.5), ONLY_SCORES, INFO, True),
        (replace(own, **nobody), TASK, replace(INFO, validation_examples=0), True),  # type: ignore[arg-type]
    ):
        with pytest.raises(RefusedError, match="number-out-of-range"):
            admit(reply, task, info, {1, 2}, range(1, 5), scores_own=scores_own)


def test_scores_of_no_patients_are_refused() -> None:
    nobody = {"validation_examples": 0}
    for change in ({"validation_loss": 0.5}, {"validation_loss": math.nan}):
        with pytest.raises(RefusedError, match="number-out-of-range"):
            admit(replace(GOOD, **nobody, **change), TASK, replace(INFO, **nobody), {1, 2})  # type: ignore[arg-type]


def test_an_update_must_be_there_exactly_when_training_was_asked_for() -> None:
    with pytest.raises(RefusedError, match="missing-update"):
        admit(replace(GOOD, update=None), TASK, INFO, {1, 2})
    with pytest.raises(RefusedError, match="unexpected-update"):
        admit(replace(SCORED, update=UPDATE), ONLY_SCORES, INFO, {1, 2})


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("pieces", [0, 1])
def test_the_norm_is_that_of_what_was_sent(encoding: Encoding, pieces: int) -> None:
    size = pieces * VALUES_PER_PIECE[encoding] + 5000
    content = content_of(np.random.default_rng(0).standard_normal(size, np.float32), encoding)
    content.flags.writeable = False
    sent = vector_of(content, size, encoding)
    assert measured(content, size, encoding) == pytest.approx(float(np.linalg.norm(sent.astype(np.float64))), rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("encoding", ["float32", "bfloat16"])
@pytest.mark.parametrize("place", [0, 70_000, VALUES_PER_PIECE["bfloat16"] + 2])
def test_an_update_that_is_not_finite_is_refused(value: float, encoding: Encoding, place: int) -> None:
    """Wherever the one value is that is not."""
    update = np.zeros(VALUES_PER_PIECE["bfloat16"] + 3, np.float32)
    update[place] = value
    with pytest.raises(RefusedError, match="not-finite"):
        measured(content_of(update, encoding), update.size, encoding)


def int8(scale: float) -> np.ndarray:
    return np.frombuffer(np.float32(scale).tobytes() + bytes([1, 2, 3]), np.uint8)


def test_an_infinite_scale_is_refused() -> None:
    assert measured(int8(2.0), 3, "int8") == pytest.approx(2 * math.sqrt(14))
    with pytest.raises(RefusedError, match="not-finite"):
        measured(int8(math.inf), 3, "int8")


@pytest.mark.parametrize("scale", [math.nan, -1.0])
def test_what_is_no_scale_is_refused(scale: float) -> None:
    with pytest.raises(ProtocolError, match="scale"):
        measured(int8(scale), 3, "int8")


def test_the_largest_float32_do_not_overflow() -> None:
    largest = float(np.finfo(np.float32).max)
    assert measured(content_of(np.full(4, largest)), 4, "float32") == pytest.approx(2 * largest)


# Model of 10,000 weights and length 50; honest updates are of length 10, give or take.
WEIGHTS, SIZE = 50.0, 10_000
honest_norm = st.floats(6, 14)


def judged(norms: dict[str, float], known: dict[str, float] | None = None) -> dict[str, Refusal]:
    return judge_norms(norms, known or {}, WEIGHTS, SIZE)


@given(st.lists(honest_norm, min_size=1, max_size=8))
def test_honest_sites_are_never_refused(norms: list[float]) -> None:
    sites = {str(index): norm for index, norm in enumerate(norms)}
    assert judged(sites) == {}
    assert judged(sites, {site: 2.5 * norm for site, norm in sites.items()}) == {}


@given(st.lists(honest_norm, min_size=2, max_size=8), st.floats(150, 1e30))
def test_one_huge_update_is_refused_in_the_first_round_and_no_other(norms: list[float], huge: float) -> None:
    sites = {str(index): norm for index, norm in enumerate(norms)}
    assert judged(sites | {"bad": huge}) == {"bad": Refusal.NORM_OUTLIER}


@given(st.lists(honest_norm, min_size=5, max_size=8), st.floats(150, 1e30), st.floats(150, 1e30))
def test_two_of_seven_do_not_vouch_for_each_other(norms: list[float], first: float, second: float) -> None:
    sites = {str(index): norm for index, norm in enumerate(norms)}
    assert set(judged(sites | {"bad": first, "worse": second})) == {"bad", "worse"}


@given(st.lists(honest_norm, min_size=2, max_size=8), st.floats(0, 1e-6))
def test_a_tiny_update_turns_no_honest_site_out(norms: list[float], tiny: float) -> None:
    sites = {str(index): norm for index, norm in enumerate(norms)}
    assert judged(sites | {"bad": tiny}) == {}


def test_the_bound_follows_the_federation_down() -> None:
    early, late = {"a": 10.0, "b": 9.0, "c": 11.0}, {"a": 0.1, "b": 0.09, "c": 0.11}
    assert judged(late, early) == {}
    assert judged(late | {"c": 10.0}, early) == {"c": Refusal.NORM_OUTLIER}


def test_sites_that_are_away_bear_witness_by_what_they_sent_last() -> None:
    known = {"a": 10.0, "b": 9.0, "bad": 10.0}
    assert judged({"bad": 150.0}, known) == {"bad": Refusal.NORM_OUTLIER}
    assert judged({"bad": 150.0, "a": 10.0}, known) == {"bad": Refusal.NORM_OUTLIER}


def test_a_site_is_not_its_own_witness() -> None:
    known = {"a": 10.0, "b": 9.0, "bad": 400.0}
    assert judged({"bad": 400.0, "a": 10.0, "b": 9.0}, known) == {"bad": Refusal.NORM_OUTLIER}


def test_no_majority_however_large_gets_beyond_ten_times_the_model() -> None:
    liars = {str(index): 501.0 for index in range(9)}
    assert set(judged(liars | {"a": 10.0})) == set(liars)


def test_two_sites_that_differ_too_much_are_both_left_out_until_one_is_known() -> None:
    assert judged({"a": 1.0, "b": 9.0}) == {}
    disputed = judged({"a": 1.0, "b": 20.0})
    assert disputed == {"a": Refusal.NORM_DISPUTED, "b": Refusal.NORM_DISPUTED}
    assert judged({"a": 1.0, "b": 20.0}, {"a": 1.1, "b": 1.0}) == {"b": Refusal.NORM_OUTLIER}


def test_a_lone_site_may_grow_tenfold_and_no_more() -> None:
    assert judged({"a": 499.0}) == {}
    assert judged({"a": 501.0}) == {"a": Refusal.NORM_OUTLIER}
    assert judged({"a": 9.0}, {"a": 1.0}) == {}
    assert judged({"a": 11.0}, {"a": 1.0}) == {"a": Refusal.NORM_OUTLIER}


def test_a_model_of_zeros_has_a_bound_too() -> None:
    assert judge_norms({"a": 10.0}, {}, 0.0, 4) == {}
    assert judge_norms({"a": 21.0}, {}, 0.0, 4) == {"a": Refusal.NORM_OUTLIER}


PRIVATE = PrivacyConfig(epsilon=8)
UNSCORED = PrivacyConfig(epsilon=8, validation="off")
PROTECTED = replace(GOOD, train_loss=math.nan, validation_loss=math.nan, dice={1: 0.5, 2: 0.25}, epsilon=1.5)
SILENT = replace(PROTECTED, dice={1: math.nan, 2: math.nan})


def test_a_private_reply_is_admitted_in_a_private_federation_alone() -> None:
    admit(PROTECTED, TASK, INFO, {1, 2}, range(1, 5), PRIVATE)
    admit(SILENT, TASK, INFO, {1, 2}, range(1, 5), UNSCORED)
    admit(replace(PROTECTED, steps=0, update=None), ONLY_SCORES, INFO, {1, 2}, range(1, 5), PRIVATE)
    for reply in (PROTECTED, SILENT, replace(GOOD, train_loss=math.nan), replace(GOOD, validation_loss=math.nan)):
        with pytest.raises(RefusedError) as caught:
            admit(reply, TASK, INFO, {1, 2}, range(1, 5))
        assert caught.value.code == "number-out-of-range"


@pytest.mark.parametrize(
    ("reply", "privacy"),
    [
        (GOOD, PRIVATE),
        (replace(PROTECTED, train_loss=0.5), PRIVATE),
        (replace(PROTECTED, validation_loss=0.5), PRIVATE),
        (replace(PROTECTED, epsilon=math.nan), PRIVATE),
        (replace(PROTECTED, epsilon=-1.0), PRIVATE),
        (replace(PROTECTED, dice={1: 0.5, 2: math.nan}), PRIVATE),
        (replace(PROTECTED, seconds_compute=math.nan), PRIVATE),
        (replace(PROTECTED, steps=5), PRIVATE),
        (PROTECTED, UNSCORED),
        (replace(SILENT, dice={1: math.nan, 2: 0.5}), UNSCORED),
    ],
)
def test_a_reply_that_protects_nobody_is_refused(reply: Result, privacy: PrivacyConfig) -> None:
    with pytest.raises(RefusedError) as caught:
        admit(reply, TASK, INFO, {1, 2}, range(1, 5), privacy)
    assert caught.value.code == "number-out-of-range"


def test_of_several_vectors_the_first_is_the_update() -> None:
    content = np.concatenate([content_of(np.array([3.0, 0, 4])), content_of(np.full(3, 100.0))])
    assert measure(content, digest_of(content), 3, "float32", 2) == 5
    for vectors in (1, 3):
        with pytest.raises(ProtocolError, match="bytes"):
            measure(content, digest_of(content), 3, "float32", vectors)
    content[-4:] = np.frombuffer(np.float32(math.nan).tobytes(), np.uint8)
    with pytest.raises(RefusedError, match="not-finite"):
        measure(content, digest_of(content), 3, "float32", 2)


def test_content_of_another_digest_is_refused() -> None:
    content = content_of(np.ones(3))
    with pytest.raises(ProtocolError, match="changed or damaged"):
        measure(content, "0" * 64, 3, "float32")


def test_a_personal_score_is_of_all_labels_or_none() -> None:
    for score in ({}, {1: 0.5, 2: math.nan}):
        admit_personal_score(replace(GOOD, personal_dice=score), {1, 2})
    admit_personal_score(GOOD, set())
    alone = replace(GOOD, validation_examples=0, personal_dice={1: math.nan, 2: math.nan})
    admit_personal_score(alone, {1, 2})


@pytest.mark.parametrize(
    ("change", "labels", "code"),
    [
        ({"personal_dice": {1: 0.5}}, {1, 2}, "wrong-labels"),
        ({"personal_dice": {1: 0.5, 2: 0.5, 3: 0.5}}, {1, 2}, "wrong-labels"),
        ({"personal_dice": {1: 0.5, 2: 0.5}}, set(), "wrong-labels"),
        ({"personal_dice": {1: 0.5, 2: 0.5}, "validation_examples": 0}, {1, 2}, "number-out-of-range"),
    ],
)
def test_a_personal_score_that_nobody_asked_for_is_refused(
    change: dict[str, object], labels: set[int], code: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        admit_personal_score(replace(GOOD, **change), labels)  # type: ignore[arg-type]
    assert refused.value.code == code


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("place", [0, 4, 5, 9])
def test_an_update_of_weights_that_sites_keep_is_refused(encoding: Encoding, place: int) -> None:
    layout = WeightLayout({"conv.weight": (2, 2), "norm.weight": (2,), "norm.bias": (2,), "head.weight": (1, 2)})
    vector = np.zeros(layout.size)
    vector[place] = 1.0
    content = content_of(vector, encoding)
    digest, part = digest_of(content), norm_part(layout)
    assert measure(content, digest, layout.size, encoding) > 0
    if place in (0, 9):
        assert measure(content, digest, layout.size, encoding, 1, part) > 0
        return
    with pytest.raises(RefusedError) as refused:
        measure(content, digest, layout.size, encoding, 1, part)
    assert refused.value.code == Refusal.PERSONAL_WEIGHTS
