"""The wire: what goes in comes out, and nothing else gets through."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.protocol import messages
from common.protocol.codec import (
    FORMAT,
    MAX_LABELS,
    MAX_MESSAGE_BYTES,
    MAX_PATIENTS,
    MAX_STEPS,
    MAX_TASKS,
    MAX_TEXT,
    Encoding,
    ErrorCode,
    Failure,
    Heartbeat,
    Hello,
    Refusal,
    Result,
    SiteInfo,
    Task,
    WeightLayout,
    from_record,
    is_task_name,
    pack,
    to_record,
    unpack_answer,
    unpack_heartbeat,
    unpack_question,
)
from common.protocol.messages import task_name
from common.weights.digest import is_sha256

MODEL = "0123456789abcdef" * 4
NAME = MODEL[:32]
HELLO = Hello("r1", "d1", 1.5, MODEL, MODEL[::-1])
TASK = Task(
    run="r1", digest="d1", round=2, rounds=5, train=True, model=MODEL, refused_last=Refusal.NOT_FINITE, counted_last=1
)
TASK = replace(TASK, epsilon_seen=1.5, ledger_seen=MODEL, audit_seen=MODEL[::-1])
INFO = SiteInfo("a", 8, 2, "0.1.0", "1.42.0", "2.13.0", "3.11.7", "cpu", "bfloat16", MODEL, MODEL[::-1])
RESULT = Result(
    site="a",
    run="r1",
    round=2,
    examples=8,
    validation_examples=2,
    steps=4,
    train_loss=0.5,
    validation_loss=0.7,
    dice={1: 0.25, 2: 0.75},
    seconds=2.0,
    seconds_data=0.1,
    seconds_compute=1.5,
    seconds_evaluate=0.4,
    epsilon=1.5,
    update=MODEL,
    ledger_head=MODEL,
    audit_head=MODEL[::-1],
    local_dice=0.5,
    personal_dice={1: 0.5, 2: 0.875},
)
FAILURE = Failure(ErrorCode.NO_DATA, "DataError")
BEAT = Heartbeat((NAME,), NAME, 3, 40)
EXAMPLES: list[Any] = [HELLO, TASK, INFO, RESULT, FAILURE, BEAT]
READERS: dict[type, Callable[[str | bytes], Any]] = {
    Hello: unpack_question,
    Task: unpack_question,
    SiteInfo: unpack_answer,
    Result: unpack_answer,
    Failure: unpack_answer,
    Heartbeat: unpack_heartbeat,
}

text = st.text(max_size=MAX_TEXT)
count = st.integers(0, MAX_STEPS)
number = st.floats(allow_infinity=False)
digits = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.text("0123456789abcdef", min_size=32, max_size=32)
encodings = st.sampled_from(get_args(Encoding))
dice = st.dictionaries(st.integers(0, 9_999_999_999), st.floats(0, 1) | st.just(math.nan), max_size=MAX_LABELS)
runs = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
heads = st.none() | digits
seen = (st.floats(0, allow_infinity=False) | st.just(math.nan), heads, heads)
hellos = st.builds(Hello, runs, text, *seen)
tasks = st.integers(1, MAX_STEPS - 1).flatmap(
    lambda rounds: st.builds(
        Task,
        runs,
        text,
        st.integers(1, rounds + 1),
        st.just(rounds),
        st.booleans(),
        digits,
        st.sampled_from(["float32", "bfloat16"]),
        encodings,
        st.none() | st.sampled_from(Refusal),
        st.just(0),
        *seen,
    )
)
infos = st.builds(
    SiteInfo,
    *(text, st.integers(1, MAX_PATIENTS), st.integers(0, MAX_PATIENTS), text, text, text, text, text, text),
    *(heads, heads),
)
results = st.builds(
    Result,
    *(text, runs, count, count, count, count, number, number, dice, number, number, number, number, number),
    *(heads, heads, heads, st.floats(0, 1) | st.just(math.nan), dice),
)
failures = st.builds(Failure, st.sampled_from(ErrorCode), st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,99}", fullmatch=True))
beats = st.lists(names, max_size=MAX_TASKS).flatmap(
    lambda held: st.integers(0, MAX_STEPS).flatmap(
        lambda steps: st.builds(
            Heartbeat, st.just(tuple(held)), st.sampled_from(["", *held]), st.integers(0, steps), st.just(steps)
        )
    )
)


def read(message: Any, text: str | bytes) -> Any:
    return READERS[type(message)](text)


def content(message: Any) -> dict[str, Any]:
    return json.loads(pack(message))


def kind_of(message: Any) -> str:
    return type(message).__name__


@given(st.one_of(hellos, tasks, infos, results, failures, beats))
def test_every_message_returns(message: Any) -> None:
    text = pack(message)
    # repr, as numbers that are not a number are not equal to themselves
    assert repr(read(message, text)) == repr(message)
    assert repr(read(message, text.encode())) == repr(message)
    assert from_record(to_record(text)) == text


@pytest.mark.parametrize("message", EXAMPLES, ids=kind_of)
def test_a_message_is_what_its_fields_are_and_no_more(message: Any) -> None:
    assert set(content(message)) == {"format", "kind", *(field.name for field in fields(message))}
    assert read(message, pack(message)) == message


def test_what_may_leave_a_site_is_this_list() -> None:
    """Whoever adds to it adds to what a hospital agreed to: the consent's text and the audit log must follow."""
    numbers = {"train_loss", "validation_loss", "seconds", "seconds_data", "seconds_compute", "seconds_evaluate"}
    counts = {"round", "examples", "validation_examples", "steps"}
    heads_named = {"ledger_head", "audit_head"}
    assert set(content(RESULT)) - {"format", "kind"} == (
        numbers | counts | {"site", "run", "dice", "local_dice", "personal_dice", "epsilon", "update"} | heads_named
    )
    versions = {"fedvox", "flwr", "torch", "python", "device", "precision"}
    sizes = {"train_examples", "validation_examples"}
    assert set(content(INFO)) - {"format", "kind"} == versions | sizes | {"site"} | heads_named
    assert set(content(FAILURE)) - {"format", "kind"} == {"code", "reason"}
    assert set(content(BEAT)) - {"format", "kind"} == {"tasks", "task", "step", "steps"}


def test_every_message_is_tried_here() -> None:
    declared = {
        value for value in vars(messages).values() if isinstance(value, type) and value.__module__ == messages.__name__
    }
    assert declared - {ErrorCode, Refusal} == set(READERS)


@pytest.mark.parametrize("message", EXAMPLES, ids=kind_of)
def test_a_message_with_one_field_more_or_fewer_is_refused(message: Any) -> None:
    with pytest.raises(ProtocolError, match="patient"):
        read(message, json.dumps(content(message) | {"patient": "Jane Doe"}))
    for name in content(message):
        changed = content(message)
        del changed[name]
        with pytest.raises(ProtocolError):
            read(message, json.dumps(changed))


FOREIGN: list[Any] = [True, 3, -1, 0.5, "free text", None, [], ["x"], {}, {"x": 1}, "", 10**30, [[]]]


def takes(message: Any, name: str, value: Any) -> bool:
    """Whether the reader takes another value for one field."""
    try:
        read(message, json.dumps(content(message) | {name: value}))
    except ProtocolError:
        return False
    return True


TEXTS = ["free text", ""]
COUNTS = [3]
NUMBERS = [3, -1, 0.5, None, 10**30]
# Results of rounds that the server did not ask for, and the like, are left to server.admission.
HEADS: dict[str, list[Any]] = {"ledger_head": [None], "audit_head": [None]}
SEEN: dict[str, list[Any]] = {
    "epsilon_seen": [value for value in NUMBERS if value != -1],
    "ledger_seen": [None],
    "audit_seen": [None],
}
ALLOWED: dict[type, dict[str, list[Any]]] = {
    Hello: {"digest": TEXTS, **SEEN},
    Task: {
        "digest": TEXTS,
        "round": COUNTS,
        "rounds": COUNTS,
        "train": [True],
        "refused_last": [None],
        **SEEN,
    },
    SiteInfo: {
        **dict.fromkeys(("site", "fedvox", "flwr", "torch", "python", "device", "precision"), TEXTS),
        **dict.fromkeys(("train_examples", "validation_examples"), COUNTS),
        **HEADS,
    },
    Result: {
        "site": TEXTS,
        **dict.fromkeys(("round", "examples", "validation_examples", "steps"), COUNTS),
        **dict.fromkeys(("train_loss", "validation_loss", "epsilon"), NUMBERS),
        **dict.fromkeys(("seconds", "seconds_data", "seconds_compute", "seconds_evaluate"), NUMBERS),
        "dice": [{}],
        "personal_dice": [{}],
        "local_dice": [0.5, None],
        "update": [None],
        **HEADS,
    },
    Failure: {},
    Heartbeat: {"task": [""], "step": COUNTS, "steps": COUNTS},
}


@pytest.mark.parametrize("message", EXAMPLES, ids=kind_of)
def test_a_field_takes_its_own_type_alone(message: Any) -> None:
    for name in (field.name for field in fields(message)):
        taken = [repr(value) for value in FOREIGN if takes(message, name, value)]
        allowed = {repr(value) for value in ALLOWED[type(message)].get(name, [])}
        assert set(taken) == allowed, name


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (HELLO, "run", "x" * (MAX_TEXT + 1)),
        (HELLO, "digest", "\ud800"),
        (TASK, "round", 0),
        (TASK, "round", 7),
        (TASK, "rounds", MAX_STEPS + 1),
        (TASK, "train", 1),
        (TASK, "model", MODEL[:-1]),
        (TASK, "model", MODEL + "\n"),
        (TASK, "model", MODEL.upper()),
        (TASK, "model", "../" + MODEL[3:]),
        (TASK, "download", "int8"),
        (TASK, "download", "float64"),
        (TASK, "upload", "float16"),
        (TASK, "refused_last", "you are ugly"),
        (TASK, "counted_last", -1),
        (TASK, "counted_last", 2),
        (INFO, "site", "x" * (MAX_TEXT + 1)),
        (INFO, "device", "half a \udfff"),
        (INFO, "train_examples", 0),
        (INFO, "train_examples", MAX_PATIENTS + 1),
        (INFO, "validation_examples", MAX_PATIENTS + 1),
        (INFO, "validation_examples", -1),
        (RESULT, "examples", -1),
        (RESULT, "examples", 1.0),
        (RESULT, "examples", MAX_STEPS + 1),
        (RESULT, "examples", 10**400),
        (RESULT, "seconds", 10**400),
        (RESULT, "train_loss", -(10**400)),
        (RESULT, "epsilon", "nan"),
        (RESULT, "epsilon", False),
        (RESULT, "dice", {"1": 1.5}),
        (RESULT, "dice", {"1": -0.1}),
        (RESULT, "dice", {"1": "0.5"}),
        (RESULT, "dice", {"1": 10**400}),
        (RESULT, "dice", {"one": 0.5}),
        (RESULT, "dice", {"01": 0.5}),
        (RESULT, "dice", {"-1": 0.5}),
        (RESULT, "dice", {"": 0.5}),
        (RESULT, "dice", {"٣": 0.5}),
        (RESULT, "dice", {"1" * 5000: 0.5}),
        (RESULT, "dice", {str(label): 0.5 for label in range(MAX_LABELS + 1)}),
        (RESULT, "dice", [0.5]),
        (RESULT, "personal_dice", {"1": 1.5}),
        (RESULT, "personal_dice", {"01": 0.5}),
        (RESULT, "personal_dice", None),
        (RESULT, "local_dice", 1.5),
        (RESULT, "local_dice", -0.1),
        (RESULT, "local_dice", "0.5"),
        (RESULT, "update", MODEL[:-1] + "g"),
        (RESULT, "update", ""),
        (RESULT, "ledger_head", MODEL[:-1]),
        (RESULT, "audit_head", MODEL.upper()),
        (INFO, "ledger_head", MODEL + "0"),
        (INFO, "audit_head", "at 2026-01-01"),
        (HELLO, "audit_seen", MODEL[1:]),
        (TASK, "ledger_seen", "../" + MODEL[3:]),
        (TASK, "epsilon_seen", -0.5),
        (HELLO, "epsilon_seen", "8"),
        (FAILURE, "code", 0),
        (FAILURE, "code", 999),
        (FAILURE, "code", float(ErrorCode.NO_DATA)),
        (FAILURE, "reason", "FileNotFoundError: /data/jane_doe.nii.gz"),
        (FAILURE, "reason", ""),
        (FAILURE, "reason", "9Lives"),
        (FAILURE, "reason", "X" * 101),
        (FAILURE, "reason", "Error\n"),
        (FAILURE, "reason", "Erreúr"),
        (BEAT, "tasks", [NAME] * (MAX_TASKS + 1)),
        (BEAT, "tasks", [NAME, 3]),
        (BEAT, "tasks", [NAME[:-1]]),
        (BEAT, "tasks", NAME),
        (BEAT, "tasks", []),
        (BEAT, "task", "f" * 32),
        (BEAT, "step", 41),
        (BEAT, "step", -1),
    ],
)
def test_a_value_out_of_range_is_refused(message: Any, field: str, value: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        read(message, json.dumps(content(message) | {field: value}))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["seconds", "train_loss", "epsilon", "examples"])
def test_numbers_that_json_has_no_word_for_are_refused(literal: str, field: str) -> None:
    value = json.dumps(content(RESULT)[field])
    changed = pack(RESULT).replace(f'"{field}":{value}', f'"{field}":{literal}')
    assert literal in changed
    with pytest.raises(ProtocolError):
        unpack_answer(changed)


@pytest.mark.parametrize("message", EXAMPLES, ids=kind_of)
def test_a_key_that_comes_twice_is_refused(message: Any) -> None:
    """Else an auditor who reads the first and a server that reads the second would not see the same."""
    for name, value in content(message).items():
        twice = pack(message)[:-1] + f",{json.dumps(name)}:{json.dumps(value)}}}"
        assert json.loads(twice) == content(message)
        with pytest.raises(ProtocolError):
            read(message, twice)


def test_a_dice_that_comes_twice_is_refused() -> None:
    with pytest.raises(ProtocolError):
        unpack_answer(pack(RESULT).replace('"1":0.25', '"1":0.25,"1":0.5'))


NO_MESSAGES: dict[str, str | bytes] = {
    "nothing": "",
    "null": "null",
    "list": "[]",
    "number": "3",
    "text": '"hello"',
    "object": "{}",
    "half": pack(RESULT)[:-1],
    "two": pack(RESULT) * 2,
    "no kind": json.dumps(content(RESULT) | {"kind": None}),
    "unknown kind": json.dumps(content(RESULT) | {"kind": "results"}),
    "kind of a list": json.dumps(content(RESULT) | {"kind": ["result"]}),
    "not UTF-8": pack(RESULT).encode().replace(b'"a"', b'"\xff"'),
    "deep": f'{{"kind":"result","format":{FORMAT},"dice":' + "[" * 10_000 + "]" * 10_000 + "}",
    "deep objects": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "long": pack(RESULT)[:-1] + " " * MAX_MESSAGE_BYTES + "}",
    "a number of many digits": pack(RESULT).replace('"round":2', f'"round":{"9" * 6000}'),
}


@pytest.mark.parametrize("text", NO_MESSAGES.values(), ids=NO_MESSAGES)
@pytest.mark.parametrize("reader", [unpack_question, unpack_answer, unpack_heartbeat])
def test_what_is_no_message_is_refused(reader: Callable[[str | bytes], Any], text: str | bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        reader(text)
    assert len(str(caught.value)) < 500


@given(st.binary() | st.text())
def test_whatever_comes_it_is_a_message_or_refused(text: str | bytes) -> None:
    for reader in (unpack_question, unpack_answer, unpack_heartbeat):
        with pytest.raises(ProtocolError):
            reader(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from(EXAMPLES), st.data(), json_values)
def test_a_changed_field_is_taken_for_what_it_says_or_refused(message: Any, data: st.DataObject, value: Any) -> None:
    name = data.draw(st.sampled_from(sorted(content(message))))
    text = json.dumps(content(message) | {name: value})
    try:
        taken = read(message, text)
    except ProtocolError:
        return
    assert json.loads(pack(taken)) == json.loads(text)


@pytest.mark.parametrize("message", EXAMPLES, ids=kind_of)
@pytest.mark.parametrize("version", [None, 1, FORMAT - 1, FORMAT + 1, str(FORMAT), True, [FORMAT], {}])
def test_another_version_of_the_protocol_is_refused_with_what_to_do(message: Any, version: Any) -> None:
    with pytest.raises(ProtocolError, match="install equal versions"):
        read(message, json.dumps(content(message) | {"format": version}))


@pytest.mark.parametrize("message", EXAMPLES, ids=kind_of)
def test_a_message_of_the_other_side_is_refused(message: Any) -> None:
    for reader in (unpack_question, unpack_answer, unpack_heartbeat):
        if reader is not READERS[type(message)]:
            with pytest.raises(ProtocolError):
                reader(pack(message))


@pytest.mark.parametrize("field", ["train_loss", "seconds", "epsilon"])
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_number_is_not_sent(field: str, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        pack(replace(RESULT, **{field: value}))


@pytest.mark.parametrize("run", ["", "a" * 65, "two words", "-x", "\x1b[2J", "a\n", "ä", "../a"])
def test_a_run_has_a_name_that_is_safe_to_print(run: str) -> None:
    for message in (Hello(run, "d1"), replace(TASK, run=run), replace(RESULT, run=run)):
        with pytest.raises(ProtocolError, match="run must be the name of a run"):
            read(message, pack(message))


def test_the_largest_message_fits() -> None:
    longest = "\U0001f600" * MAX_TEXT
    scores = {10**9 + label: 1 / 3 + label / 1e9 for label in range(MAX_LABELS)}
    largest = replace(RESULT, site=longest, run="r" * 64, dice=scores, personal_dice=scores)
    assert read(largest, pack(largest)) == largest
    assert len(pack(largest)) < MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"fedvox": ConfigRecord()}),
        RecordDict({"fedvox": ConfigRecord({"json": b"{}"})}),
        RecordDict({"fedvox": ConfigRecord({"json": ["{}"]})}),
        RecordDict({"fedvox": ConfigRecord({"json": 3})}),
        RecordDict({"fedvox": ConfigRecord({"json": "{}", "more": "x"})}),
        RecordDict({"fedvox": ConfigRecord({"text": "{}"})}),
        RecordDict({"other": ConfigRecord({"json": "{}"})}),
        RecordDict({"fedvox": MetricRecord({"json": 3})}),
        RecordDict({"fedvox": ArrayRecord({"json": Array("u1", (2,), "x", b"{}")})}),
        RecordDict({"fedvox": ConfigRecord({"json": "{}"}), "weights": ArrayRecord([np.zeros(3)])}),
        RecordDict({"fedvox": ConfigRecord({"json": "{}"}), "note": ConfigRecord({"a": "b"})}),
    ],
)
def test_a_record_that_holds_anything_else_is_refused(records: RecordDict) -> None:
    with pytest.raises(ProtocolError):
        from_record(records)


def test_mean_dice_leaves_out_labels_without_one() -> None:
    assert replace(RESULT, dice={1: 0.25, 2: math.nan}).mean_dice == 0.25
    assert math.isnan(replace(RESULT, dice={1: math.nan}).mean_dice)


def test_a_task_is_named_by_run_round_and_model_alone() -> None:
    same = [replace(TASK, refused_last=None), replace(TASK, upload="int8"), replace(TASK, digest="other")]
    assert {task.name for task in same} == {TASK.name} == {task_name("r1", 2, MODEL)}
    others = [replace(TASK, run="r2"), replace(TASK, round=3), replace(TASK, model="f" * 64)]
    assert len({TASK.name, *(task.name for task in others)}) == 4
    assert all(is_task_name(task.name) for task in (TASK, *others))


@pytest.mark.parametrize("text", ["", MODEL[:-1], MODEL + "0", MODEL.upper(), MODEL[:-1] + "\n", "../../etc/passwd"])
def test_what_names_no_file_is_no_sha256(text: str) -> None:
    assert is_sha256(MODEL)
    assert not is_sha256(text)
    assert not is_task_name(text)


def test_layout_flattens_and_loads_a_model() -> None:
    torch.manual_seed(0)
    source, target = (torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.GroupNorm(1, 2)) for _ in range(2))
    layout = WeightLayout.of(source)
    assert layout.size == 2 * 27 + 2 + 2 + 2
    layout.load(target, layout.flatten(source.state_dict()))
    for expected, loaded in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        assert torch.equal(expected, loaded)


def test_layout_loads_weights_that_are_read_only() -> None:
    """As those of a mapped file are, of which PyTorch warns when it is given one."""
    model = torch.nn.Linear(2, 1)
    layout = WeightLayout.of(model)
    weights = np.arange(layout.size, dtype=np.float32)
    weights.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layout.load(model, weights)
    np.testing.assert_array_equal(layout.flatten(model.state_dict()), weights)


def test_layout_refuses_weights_of_another_model() -> None:
    layout = WeightLayout({"w": (2, 2)})
    with pytest.raises(ProtocolError, match="3 values"):
        layout.split(np.zeros(3, np.float32))
