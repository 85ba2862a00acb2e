"""The wire: what goes in comes out, and nothing else gets through."""

import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.protocol import (
    PIECE_BYTES,
    Progress,
    Refusal,
    Result,
    SiteInfo,
    Task,
    WeightLayout,
    is_progress,
    pack_hello,
    pack_info,
    pack_progress,
    pack_result,
    pack_task,
    pack_tasks,
    pack_wait,
    pack_weights,
    unpack_hello,
    unpack_info,
    unpack_progress,
    unpack_result,
    unpack_task,
    unpack_wait,
)
from common.transport import Encoding

TASK = Task(run="r1", digest="d1", round=2, rounds=5, train=True)
INFO = SiteInfo("a", 8, 2, "0.1.0", "1.41.0", "2.13.0", "3.11.7", "cpu", "bfloat16")
RESULT = Result(
    site="a",
    run="r1",
    round=2,
    examples=8,
    validation_examples=2,
    steps=4,
    train_loss=0.5,
    validation_loss=0.7,
    dice={1: 0.25, 2: math.nan},
    seconds=2.0,
    seconds_data=0.1,
    seconds_compute=1.5,
    seconds_evaluate=0.4,
)


def over_the_wire(records: RecordDict) -> RecordDict:
    """Through Flower's own serialisation and back."""
    return recorddict_from_proto(recorddict_to_proto(records))


@given(st.integers(0, 3), st.integers(-2, 2))
def test_weights_of_any_size_return_bit_for_bit(pieces: int, offset: int) -> None:
    size = max(1, pieces * PIECE_BYTES // 4 + offset)
    weights = np.arange(size, dtype=np.float32)
    task, returned = unpack_task(over_the_wire(pack_task(TASK, weights)), size)
    assert task == TASK
    np.testing.assert_array_equal(returned, weights)


def test_weights_travel_in_few_pieces_of_at_most_8_mib() -> None:
    records = pack_task(TASK, np.zeros(3 * PIECE_BYTES // 4 + 1, np.float32))
    sizes = [len(array.data) for array in records.array_records["weights"].values()]
    assert sizes == [PIECE_BYTES] * 3 + [4]


def test_result_returns_with_its_update() -> None:
    update = np.array([1.5, -2.0, math.inf], np.float32)
    result, returned = unpack_result(over_the_wire(pack_result(RESULT, update)), 3)
    assert returned is not None
    np.testing.assert_array_equal(returned.vector(), update)
    assert repr(result) == repr(RESULT)


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_an_update_travels_in_the_form_that_was_asked_for(encoding: Encoding) -> None:
    update = np.linspace(-1, 1, 1000, dtype=np.float32)
    _, returned = unpack_result(over_the_wire(pack_result(RESULT, update, encoding)), 1000, encoding)
    assert returned is not None
    np.testing.assert_allclose(returned.vector(), update, atol=1 / 127)
    for other in {"float32", "bfloat16", "int8"} - {encoding}:
        with pytest.raises(ProtocolError, match="weights"):
            unpack_result(pack_result(RESULT, update, encoding), 1000, other)


def test_weights_may_come_in_bfloat16_but_never_in_int8() -> None:
    weights = np.array([1.0, -0.5, 3.0], np.float32)
    _, returned = unpack_task(over_the_wire(pack_task(TASK, weights, "bfloat16")), 3)
    np.testing.assert_array_equal(returned, weights)
    with pytest.raises(ProtocolError, match="weights"):
        unpack_task(pack_task(TASK, weights, "int8"), 3)


def test_each_site_gets_its_own_task_and_all_share_the_weights() -> None:
    tasks = [TASK, Task("r1", "d1", 2, 5, True, "int8", Refusal.NORM_OUTLIER)]
    records = pack_tasks(tasks, pack_weights(np.zeros(3, np.float32)))
    assert records[0]["weights"] is records[1]["weights"]
    assert [unpack_task(over_the_wire(record), 3)[0] for record in records] == tasks


def test_progress_and_wait_return() -> None:
    progress = Progress("r1", 3, 17, 40)
    records = over_the_wire(pack_progress(progress))
    assert is_progress(records)
    assert unpack_progress(records) == progress
    assert not is_progress(result_records())
    assert unpack_wait(over_the_wire(pack_wait("r1", 3))) == ("r1", 3)


@pytest.mark.parametrize(
    ("field", "value"), [("upload", "float64"), ("upload", 3), ("refused_last", "you are ugly"), ("refused_last", 3)]
)
def test_words_outside_the_closed_lists_are_refused(field: str, value: object) -> None:
    records = changed(pack_task(TASK, np.zeros(3, np.float32)), "task", **{field: value})
    with pytest.raises(ProtocolError, match=field):
        unpack_task(records, 3)


def test_progress_with_an_extra_field_is_refused() -> None:
    with pytest.raises(ProtocolError, match="note"):
        unpack_progress(changed(pack_progress(Progress("r1", 3, 17, 40)), "progress", note="free text"))
    with pytest.raises(ProtocolError, match="note"):
        unpack_wait(changed(pack_wait("r1", 3), "wait", note="free text"))


def test_result_without_training_has_no_update() -> None:
    _, update = unpack_result(over_the_wire(pack_result(RESULT, None)), 3)
    assert update is None


def test_mean_dice_leaves_out_labels_without_one() -> None:
    assert RESULT.mean_dice == 0.25


def test_info_and_hello_return() -> None:
    assert unpack_info(over_the_wire(pack_info(INFO))) == INFO
    assert unpack_hello(over_the_wire(pack_hello("r1", "d1"))) == "d1"


def changed(records: RecordDict, record: str, **values: object) -> RecordDict:
    for key, value in values.items():
        records[record][key] = value
    return records


def without(records: RecordDict, record: str, key: str) -> RecordDict:
    del records[record][key]
    return records


def result_records() -> RecordDict:
    return pack_result(RESULT, np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        (changed(result_records(), "numbers", patient_age=61), "patient_age"),
        (changed(result_records(), "identity", note="free text"), "note"),
        (without(result_records(), "numbers", "examples"), "examples"),
        (changed(result_records(), "numbers", examples=-1), "examples"),
        (changed(result_records(), "numbers", examples=1.5), "examples"),
        (changed(result_records(), "numbers", seconds=math.inf), "seconds"),
        (changed(result_records(), "numbers", dice_values=[0.5, 1.5]), "Dice"),
        (changed(result_records(), "numbers", dice_values=[0.5]), "equal length"),
        (changed(result_records(), "numbers", dice_labels=[1, 1]), "twice"),
        (changed(result_records(), "identity", site="x" * 201), "site"),
        (changed(result_records(), "identity", format=99), "protocol 99"),
        (RecordDict({**result_records(), "images": ArrayRecord([np.zeros(3)])}), "images"),
        (RecordDict({**result_records(), "numbers": ConfigRecord({"a": 1})}), "numbers"),
        (RecordDict({**result_records(), "update": MetricRecord({"a": 1})}), "update"),
    ],
)
def test_result_that_is_not_exactly_what_is_allowed_is_refused(records: RecordDict, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        unpack_result(records, 3)


@pytest.mark.parametrize(
    "array",
    [
        Array(dtype="float32", shape=(2,), stype="fedvox.float32-le", data=b"\0" * 8),
        Array(dtype="float64", shape=(3,), stype="fedvox.float32-le", data=b"\0" * 24),
        Array(dtype="float32", shape=(3,), stype="fedvox.float32-le", data=b"\0" * 11),
        Array(np.zeros(3, np.float32)),
    ],
)
def test_update_of_another_form_is_refused(array: Array) -> None:
    records = result_records()
    records["update"] = ArrayRecord({"00000": array})
    with pytest.raises(ProtocolError, match="weights"):
        unpack_result(records, 3)


@pytest.mark.parametrize("number", [0, 7])
def test_round_outside_the_federation_is_refused(number: int) -> None:
    records = changed(pack_task(TASK, np.zeros(3, np.float32)), "task", round=number)
    with pytest.raises(ProtocolError, match="does not exist"):
        unpack_task(records, 3)


def test_task_with_an_extra_field_is_refused() -> None:
    records = changed(pack_task(TASK, np.zeros(3, np.float32)), "task", command="rm")
    with pytest.raises(ProtocolError, match="command"):
        unpack_task(records, 3)


@pytest.mark.parametrize("count", [0, 10**9])
def test_site_without_training_patients_or_with_too_many_is_refused(count: int) -> None:
    with pytest.raises(ProtocolError, match="patient counts"):
        unpack_info(changed(pack_info(INFO), "info", train_examples=count))


def test_layout_flattens_and_loads_a_model() -> None:
    torch.manual_seed(0)
    source, target = (torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.GroupNorm(1, 2)) for _ in range(2))
    layout = WeightLayout.of(source)
    assert layout.size == 2 * 27 + 2 + 2 + 2
    layout.load(target, layout.flatten(source.state_dict()))
    for expected, loaded in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        assert torch.equal(expected, loaded)


def test_layout_refuses_weights_of_another_model() -> None:
    layout = WeightLayout({"w": (2, 2)})
    with pytest.raises(ProtocolError, match="3 values"):
        layout.split(np.zeros(3, np.float32))
