"""Wire format of all messages between hospitals and the server.

Messages are small JSON objects with exactly the fields listed in ``common.protocol.messages``. Decoding checks every
name, type and range, and rejects messages with missing or additional fields. A site sends no free-text error messages:
a failure is an ``ErrorCode`` and the name of an exception class.

Weights and updates are separate files of raw values (``common.weights.encoding``), which messages reference by their
SHA-256. Names and shapes are not sent; both sides know them from the plan (``WeightLayout``).

Flower carries a message as the only text of a record.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

from flwr.app import ConfigRecord, RecordDict

from common.errors import ProtocolError
from common.protocol.messages import ErrorCode, Failure, Heartbeat, Hello, Refusal, Result, SiteInfo, Task
from common.weights.digest import SHA256
from common.weights.encoding import Encoding, Vector
from common.weights.layout import WeightLayout

FORMAT = 5
HELLO = "hello"
MAX_LABELS = 256
MAX_PATIENTS = 1_000_000
MAX_STEPS = 10**9
MAX_TEXT = 200
MAX_TASKS = 16
MAX_MESSAGE_BYTES = 32 * 1024
"""Largest size of a message as JSON; a result with ``MAX_LABELS`` labels fits."""
RECORD, FIELD = "fedvox", "json"
_TASK_NAME = re.compile(r"[0-9a-f]{32}")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""As names of federations are."""
_CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_SURROGATE = re.compile("[\ud800-\udfff]")

Question = Hello | Task
Answer = SiteInfo | Result | Failure
_KINDS: Mapping[type, str] = {
    Hello: "hello",
    Task: "task",
    SiteInfo: "info",
    Result: "result",
    Failure: "failure",
    Heartbeat: "heartbeat",
}


def pack(message: Question | Answer | Heartbeat) -> str:
    """Encode a message as JSON; NaN becomes null."""
    content: dict[str, Any] = {"format": FORMAT, "kind": _KINDS[type(message)]}
    for field in fields(message):
        content[field.name] = _plain(getattr(message, field.name))
    return json.dumps(content, allow_nan=False, separators=(",", ":"))


def unpack_question(text: str | bytes) -> Question:
    """Decode a message from the server.

    Raises
    ------
    ProtocolError
        If it is not a valid message: a field is missing, unknown, of the wrong type or out of range.
    """
    kind, content = _open(text)
    if kind == "hello":
        return Hello(**_read(content, _HELLO, "hello"))
    if kind == "task":
        task = Task(**_read(content, _TASK, "task"))
        if not 1 <= task.round <= task.rounds + 1:
            raise ProtocolError(f"task: round {task.round} of {task.rounds} does not exist")
        if task.counted_last >= task.round:
            raise ProtocolError(f"task: round {task.counted_last} cannot have counted before round {task.round}")
        return task
    raise ProtocolError("not a message to a site")


def unpack_answer(text: str | bytes) -> Answer:
    """Decode a message from a site.

    Raises
    ------
    ProtocolError
        As for ``unpack_question``.
    """
    kind, content = _open(text)
    if kind == "info":
        info = SiteInfo(**_read(content, _INFO, "info"))
        if not 1 <= info.train_examples <= MAX_PATIENTS or info.validation_examples > MAX_PATIENTS:
            raise ProtocolError("info: patient counts are out of range, and there must be one to train on")
        return info
    if kind == "result":
        return Result(**_read(content, _RESULT, "result"))
    if kind == "failure":
        return Failure(**_read(content, _FAILURE, "failure"))
    raise ProtocolError("not a message from a site")


def unpack_heartbeat(text: str | bytes) -> Heartbeat:
    """Decode a site's heartbeat.

    Raises
    ------
    ProtocolError
        As for ``unpack_question``, and if the heartbeat contradicts itself.
    """
    kind, content = _open(text)
    if kind != "heartbeat":
        raise ProtocolError("not a heartbeat")
    beat = Heartbeat(**_read(content, _HEARTBEAT, "heartbeat"))
    if beat.step > beat.steps or (beat.task and beat.task not in beat.tasks):
        raise ProtocolError("heartbeat: contradicts itself")
    return beat


def to_record(text: str) -> RecordDict:
    """Wrap an encoded message as the content of a Flower message."""
    return RecordDict({RECORD: ConfigRecord({FIELD: text})})


def from_record(records: RecordDict) -> str:
    """Extract the encoded message from a Flower message; the inverse of ``to_record``.

    Raises
    ------
    ProtocolError
        If the content is not exactly one encoded message.
    """
    record = records[RECORD] if set(records) == {RECORD} else None
    text = record[FIELD] if isinstance(record, ConfigRecord) and set(record) == {FIELD} else None
    if not isinstance(text, str):
        raise ProtocolError("a Flower message that holds no Fedvox message")
    return text


def is_task_name(text: str) -> bool:
    """Return whether a text is a valid task name."""
    return _TASK_NAME.fullmatch(text) is not None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _open(text: str | bytes) -> tuple[str, dict[str, Any]]:
    if len(text) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ProtocolError("a message that is not a JSON object") from None
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise ProtocolError("a message that is not a JSON object with a kind")
    version, kind = content.pop("format", None), content.pop("kind")
    if version != FORMAT or isinstance(version, bool):
        raise ProtocolError(f"the other side speaks protocol {version!r}, this one {FORMAT}: install equal versions")
    return kind, content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("duplicate key")
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


Reader = Callable[[Any, str], Any]


def _read(content: Mapping[str, Any], readers: Mapping[str, Reader], where: str) -> dict[str, Any]:
    if set(content) != set(readers):
        unknown, missing = sorted(set(content) - set(readers)), sorted(set(readers) - set(content))
        raise ProtocolError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    return {name: reader(content[name], f"{where}: {name}") for name, reader in readers.items()}


def _text(value: Any, name: str) -> str:
    # JSON can encode lone surrogates, which cannot be written as UTF-8.
    if not isinstance(value, str) or len(value) > MAX_TEXT or _SURROGATE.search(value):
        raise ProtocolError(f"{name} must be a text of at most {MAX_TEXT} characters")
    return value


def _matching(pattern: re.Pattern[str], what: str) -> Reader:
    def read(value: Any, name: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ProtocolError(f"{name} must be {what}")
        return value

    return read


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} must be true or false")
    return value


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_STEPS:
        raise ProtocolError(f"{name} must be a whole number, not negative")
    return value


def _number(value: Any, name: str) -> float:
    if value is None:
        return math.nan
    # JSON integers have unlimited length; very long ones overflow a float.
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise ProtocolError(f"{name} must be a number")
    return float(value)


def _epsilon(value: Any, name: str) -> float:
    epsilon = _number(value, name)
    if epsilon < 0:
        raise ProtocolError(f"{name} must not be negative")
    return epsilon


def _share(value: Any, name: str) -> float:
    share = _number(value, name)
    if not (math.isnan(share) or 0 <= share <= 1):
        raise ProtocolError(f"{name} must lie between 0 and 1")
    return share


def _encoding(value: Any, name: str) -> Encoding:
    encoding: Encoding
    for encoding in get_args(Encoding):
        if value == encoding:
            return encoding
    raise ProtocolError(f"{name} must be one of {', '.join(get_args(Encoding))}")


def _weights_encoding(value: Any, name: str) -> Encoding:
    encoding = _encoding(value, name)
    if encoding == "int8":
        raise ProtocolError(f"{name} must be one of float32, bfloat16")
    return encoding


def _optional(reader: Reader) -> Reader:
    return lambda value, name: None if value is None else reader(value, name)


def _refusal(value: Any, name: str) -> Refusal:
    try:
        return Refusal(value)
    except ValueError:
        raise ProtocolError(f"{name} is not a known reason") from None


def _error_code(value: Any, name: str) -> ErrorCode:
    try:
        return ErrorCode(_count(value, name))
    except ValueError:
        raise ProtocolError(f"{name} is not a known code") from None


def _dice(value: Any, name: str) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MAX_LABELS:
        raise ProtocolError(f"{name} must hold a number for each of at most {MAX_LABELS} labels")
    dice = {}
    for label, score in value.items():
        if not (label.isascii() and label.isdecimal() and str(int(label[:10])) == label):
            raise ProtocolError(f"{name}: {label[:20]!r} is no label")
        dice[int(label)] = _share(score, f"{name} of label {label}")
    return dice


def _task_names(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_TASKS:
        raise ProtocolError(f"{name} must be a list of at most {MAX_TASKS} tasks")
    return tuple(_task(item, name) for item in value)


_sha256 = _matching(SHA256, "a SHA-256 in hexadecimal digits")
_task = _matching(_TASK_NAME, "the name of a task")
_run = _matching(_RUN_NAME, "the name of a run: letters, digits, dots, dashes and underscores")
_class_name = _matching(_CLASS_NAME, "the name of an exception class")

_HEADS: Mapping[str, Reader] = {"ledger_head": _optional(_sha256), "audit_head": _optional(_sha256)}
_SEEN: Mapping[str, Reader] = {
    "epsilon_seen": _epsilon,
    "ledger_seen": _optional(_sha256),
    "audit_seen": _optional(_sha256),
}
_HELLO: Mapping[str, Reader] = {"run": _run, "digest": _text, **_SEEN}
_TASK: Mapping[str, Reader] = {
    "run": _run,
    "digest": _text,
    "round": _count,
    "rounds": _count,
    "train": _flag,
    "model": _sha256,
    "download": _weights_encoding,
    "upload": _encoding,
    "refused_last": _optional(_refusal),
    "counted_last": _count,
    **_SEEN,
}
_INFO: Mapping[str, Reader] = {
    "site": _text,
    "train_examples": _count,
    "validation_examples": _count,
    "fedvox": _text,
    "flwr": _text,
    "torch": _text,
    "python": _text,
    "device": _text,
    "precision": _text,
    **_HEADS,
}
_RESULT: Mapping[str, Reader] = {
    "site": _text,
    "run": _run,
    "round": _count,
    "examples": _count,
    "validation_examples": _count,
    "steps": _count,
    "train_loss": _number,
    "validation_loss": _number,
    "dice": _dice,
    "seconds": _number,
    "seconds_data": _number,
    "seconds_compute": _number,
    "seconds_evaluate": _number,
    "epsilon": _number,
    "update": _optional(_sha256),
    "local_dice": _share,
    **_HEADS,
    "personal_dice": _dice,
}
_FAILURE: Mapping[str, Reader] = {"code": _error_code, "reason": _class_name}
_HEARTBEAT: Mapping[str, Reader] = {
    "tasks": _task_names,
    "task": lambda value, name: value if value == "" else _task(value, name),
    "step": _count,
    "steps": _count,
}

__all__: Sequence[str] = [
    "FORMAT",
    "HELLO",
    "Answer",
    "Encoding",
    "ErrorCode",
    "Failure",
    "Heartbeat",
    "Hello",
    "Question",
    "Refusal",
    "Result",
    "SiteInfo",
    "Task",
    "Vector",
    "WeightLayout",
    "from_record",
    "is_task_name",
    "pack",
    "to_record",
    "unpack_answer",
    "unpack_heartbeat",
    "unpack_question",
]
