"""What crosses the wire between a hospital and the server, and nothing else may.

The server sends a ``Task`` and the global weights; a site answers with a ``Result`` and its update. Both are written
to Flower records field by field from the closed lists below, and read back with every name, type and range checked:
a message with one field more, or one fewer, is refused. There is no free text from a site. A failure leaves it as an
``ErrorCode`` and the name of an exception class.

Weights travel as flat vectors in a few large pieces (``common.transport``). Names and shapes are not sent; both sides
know them from the plan (``WeightLayout``).

A site that needs long answers in between with ``Progress``, and the server asks on with a wait message: Flower lets a
site speak only in reply.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_args

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.errors import ProtocolError
from common.layout import WeightLayout
from common.messages import ErrorCode, Progress, Refusal, Result, SiteInfo, Task
from common.parts import name_of
from common.transport import (
    PIECE_BYTES,
    WIRE_TYPES,
    Encoding,
    ErrorFeedback,
    Piece,
    Vector,
    decode_vector,
    encode_vector,
    pieces_of,
)

FORMAT = 2
MAX_LABELS = 256
MAX_PATIENTS = 1_000_000
HELLO, WAIT = "hello", "wait"


@dataclass(frozen=True)
class Update:
    """A site's update as it came over the wire; the form of every piece is checked, its values are not.

    size: values of the vector.
    arrays: its pieces.
    """

    size: int
    encoding: Encoding
    arrays: tuple[Array, ...]

    @property
    def data(self) -> tuple[bytes, ...]:
        """The bytes of the pieces."""
        return tuple(array.data for array in self.arrays)

    @property
    def digest(self) -> str:
        """What ``digest_of`` makes of its pieces."""
        return digest_of(self.arrays)

    def pieces(self) -> Iterator[tuple[Piece, bytes]]:
        """The pieces in order, with their bytes."""
        return zip(pieces_of(self.size, self.encoding), self.data, strict=True)

    def vector(self) -> Vector:
        """All values at once."""
        return decode_vector(self.data, self.size, self.encoding)


def pack_task(task: Task, weights: Vector, encoding: Encoding = "float32") -> RecordDict:
    """A task and the global weights as Flower records."""
    return pack_tasks([task], pack_weights(weights, encoding))[0]


def pack_weights(weights: Vector, encoding: Encoding = "float32") -> ArrayRecord:
    """The part of a task that is the same for all sites."""
    return _pack_pieces(encode_vector(weights, encoding), encoding)


def pack_tasks(tasks: Sequence[Task], weights: ArrayRecord) -> list[RecordDict]:
    """Several tasks that share the same weights, also in memory; they are what ``pack_weights`` made."""
    return [RecordDict({"task": _pack_text_and_numbers(task), "weights": weights}) for task in tasks]


def unpack_task(records: RecordDict, size: int) -> tuple[Task, Vector]:
    """The inverse of ``pack_task``; ``size`` is the number of weights that the plan's model has."""
    _expect_keys(records, {"task", "weights"}, "task message")
    task = _unpack_text_and_numbers(Task, _record(records, "task", ConfigRecord))
    if not 1 <= task.round <= task.rounds + 1:
        raise ProtocolError(f"task: round {task.round} of {task.rounds} does not exist")
    record = _record(records, "weights", ArrayRecord)
    halved = any(array.stype == WIRE_TYPES["bfloat16"] for array in record.values())
    return task, _unpack_pieces(record, size, "bfloat16" if halved else "float32").vector()


def pack_wait(run: str, round_number: int) -> RecordDict:
    """The question to a site that answered with ``Progress``: is it done now?"""
    return RecordDict({"wait": ConfigRecord({"format": FORMAT, "run": run, "round": round_number})})


def unpack_wait(records: RecordDict) -> tuple[str, int]:
    """Run and round from a wait message."""
    _expect_keys(records, {"wait"}, "wait message")
    record = _record(records, "wait", ConfigRecord)
    _expect_keys(record, {"format", "run", "round"}, "wait")
    _expect_format(record)
    return _text(record, "run"), _count(record, "round")


def pack_progress(progress: Progress) -> RecordDict:
    """A sign of life as Flower records."""
    return RecordDict({"progress": _pack_text_and_numbers(progress)})


def is_progress(records: RecordDict) -> bool:
    """Whether a reply is a sign of life rather than a result."""
    return set(records) == {"progress"}


def unpack_progress(records: RecordDict) -> Progress:
    """The inverse of ``pack_progress``."""
    _expect_keys(records, {"progress"}, "progress message")
    return _unpack_text_and_numbers(Progress, _record(records, "progress", ConfigRecord))


def pack_hello(run: str, digest: str) -> RecordDict:
    """The question that a ``SiteInfo`` answers."""
    return RecordDict({"hello": ConfigRecord({"format": FORMAT, "run": run, "digest": digest})})


def unpack_hello(records: RecordDict) -> str:
    """The federation's digest from a hello message."""
    _expect_keys(records, {"hello"}, "hello message")
    record = _record(records, "hello", ConfigRecord)
    _expect_keys(record, {"format", "run", "digest"}, "hello")
    _expect_format(record)
    return _text(record, "digest")


def pack_info(info: SiteInfo) -> RecordDict:
    """A site's declaration as Flower records."""
    return RecordDict({"info": _pack_text_and_numbers(info)})


def unpack_info(records: RecordDict) -> SiteInfo:
    """The inverse of ``pack_info``."""
    _expect_keys(records, {"info"}, "site information")
    info = _unpack_text_and_numbers(SiteInfo, _record(records, "info", ConfigRecord))
    if not 1 <= info.train_examples <= MAX_PATIENTS or info.validation_examples > MAX_PATIENTS:
        raise ProtocolError("site information: patient counts are out of range, and there must be one to train on")
    return info


_RESULT_TEXT = ("site", "run")
_RESULT_COUNTS = ("round", "examples", "validation_examples", "steps")
_RESULT_NUMBERS = (
    "train_loss",
    "validation_loss",
    "seconds",
    "seconds_data",
    "seconds_compute",
    "seconds_evaluate",
    "epsilon",
)


def pack_result(
    result: Result, update: Vector | None, encoding: Encoding = "float32", feedback: ErrorFeedback | None = None
) -> RecordDict:
    """A site's numbers and, after training, its update (its weights minus the global ones).

    Args:
        result: the numbers.
        update: flat, or None.
        encoding: the form in which the update travels.
        feedback: the site's memory of what a lossy form cut off; None forgets it.
    """
    numbers: dict[str, Any] = {name: int(getattr(result, name)) for name in _RESULT_COUNTS}
    numbers |= {name: float(getattr(result, name)) for name in _RESULT_NUMBERS}
    numbers["dice_labels"] = [int(label) for label in result.dice]
    numbers["dice_values"] = [float(value) for value in result.dice.values()]
    records = RecordDict(
        {
            "identity": ConfigRecord({"format": FORMAT} | {name: getattr(result, name) for name in _RESULT_TEXT}),
            "numbers": MetricRecord(numbers),
        }
    )
    if update is not None:
        records["update"] = _pack_pieces((feedback or ErrorFeedback()).encode(update, encoding), encoding)
    return records


def unpack_result(records: RecordDict, size: int, encoding: Encoding = "float32") -> tuple[Result, Update | None]:
    """The inverse of ``pack_result``; the update stays in the form in which it came, to be read piece by piece.

    Raises:
        ProtocolError: a field is missing, unknown, of another type, or a number lies outside its range.
    """
    expected = {"identity", "numbers"} | ({"update"} if "update" in records else set())
    _expect_keys(records, expected, "result message")
    identity = _record(records, "identity", ConfigRecord)
    _expect_keys(identity, {"format", *_RESULT_TEXT}, "identity")
    _expect_format(identity)
    record = _record(records, "numbers", MetricRecord)
    _expect_keys(record, {*_RESULT_COUNTS, *_RESULT_NUMBERS, "dice_labels", "dice_values"}, "numbers")
    values: dict[str, Any] = {name: _text(identity, name) for name in _RESULT_TEXT}
    values |= {name: _count(record, name) for name in _RESULT_COUNTS}
    values |= {name: _number(record, name) for name in _RESULT_NUMBERS}
    values["dice"] = _unpack_dice(record)
    update = _unpack_pieces(_record(records, "update", ArrayRecord), size, encoding) if "update" in records else None
    return Result(**values), update


def _unpack_dice(record: MetricRecord) -> dict[int, float]:
    labels, values = record["dice_labels"], record["dice_values"]
    if not isinstance(labels, list) or not isinstance(values, list) or len(labels) != len(values):
        raise ProtocolError("numbers: dice_labels and dice_values must be lists of equal length")
    if len(labels) > MAX_LABELS or len(set(labels)) != len(labels):
        raise ProtocolError("numbers: dice_labels are too many or stand twice")
    dice = {}
    for label, value in zip(labels, values, strict=True):
        if not isinstance(label, int) or not isinstance(value, float) or not (math.isnan(value) or 0 <= value <= 1):
            raise ProtocolError(f"numbers: Dice of label {label!r} must lie between 0 and 1")
        dice[label] = value
    return dice


def piece_array(piece: Piece, data: bytes, encoding: Encoding) -> Array:
    """One piece as an array of Flower's."""
    return Array(encoding, (piece.count,), WIRE_TYPES[encoding], data)


def digest_of(arrays: Iterable[Array]) -> str:
    """SHA-256 over the names of arrays, which are hashes of their forms and bytes and may be known already."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(name_of(array).encode())
    return total.hexdigest()


def _pack_pieces(pieces: Iterator[tuple[Piece, bytes]], encoding: Encoding) -> ArrayRecord:
    arrays = (piece_array(piece, data, encoding) for piece, data in pieces)
    return ArrayRecord({f"{index:05d}": array for index, array in enumerate(arrays)})


def _unpack_pieces(record: ArrayRecord, size: int, encoding: Encoding) -> Update:
    pieces = pieces_of(size, encoding)
    names = [f"{index:05d}" for index in range(len(pieces))]
    _expect_keys(record, set(names), "weights")
    for name, piece in zip(names, pieces, strict=True):
        array = record[name]
        if (array.stype, array.dtype, tuple(array.shape)) != (WIRE_TYPES[encoding], encoding, (piece.count,)):
            raise ProtocolError(f"weights: piece {name} is not {piece.count} {encoding} values in the protocol's form")
        if len(array.data) != piece.size:
            raise ProtocolError(f"weights: piece {name} has {len(array.data)} bytes, {piece.size} expected")
    return Update(size, encoding, tuple(record[name] for name in names))


Message = TypeVar("Message", Task, SiteInfo, Progress)
Record = TypeVar("Record")


def _pack_text_and_numbers(message: Task | SiteInfo | Progress) -> ConfigRecord:
    values = {field.name: getattr(message, field.name) for field in fields(message)}
    # Flower's records know neither None nor enumerations.
    plain = {name: str(value or "") if name == "refused_last" else value for name, value in values.items()}
    return ConfigRecord({"format": FORMAT} | plain)


def _unpack_text_and_numbers(kind: type[Message], record: ConfigRecord) -> Message:
    _expect_keys(record, {"format", *(field.name for field in fields(kind))}, kind.__name__)
    _expect_format(record)
    readers: dict[str, Callable[[ConfigRecord, str], Any]] = {"str": _text, "int": _count, "bool": _flag}
    readers |= {"Encoding": _encoding, "Refusal | None": _refusal}
    values: dict[str, Any] = {field.name: readers[str(field.type)](record, field.name) for field in fields(kind)}
    return kind(**values)


def _expect_format(record: ConfigRecord) -> None:
    if record["format"] != FORMAT:
        raise ProtocolError(
            f"the other side speaks protocol {record['format']!r}, this one {FORMAT}: install equal versions"
        )


def _expect_keys(record: Mapping[str, Any], expected: set[str], where: str) -> None:
    present = set(record)
    if present != expected:
        unknown, missing = sorted(present - expected), sorted(expected - present)
        raise ProtocolError(f"{where}: unknown fields {unknown}, missing fields {missing}")


def _record(records: RecordDict, name: str, kind: type[Record]) -> Record:
    record = records[name]
    if not isinstance(record, kind):
        raise ProtocolError(f"{name}: must be a {kind.__name__}")
    return record


def _text(record: ConfigRecord, name: str) -> str:
    value = record[name]
    if not isinstance(value, str) or len(value) > 200:
        raise ProtocolError(f"{name}: must be a text of at most 200 characters")
    return value


def _encoding(record: ConfigRecord, name: str) -> Encoding:
    value = _text(record, name)
    for encoding in get_args(Encoding):
        if value == encoding:
            return encoding  # type: ignore[no-any-return]
    raise ProtocolError(f"{name}: must be one of {', '.join(get_args(Encoding))}")


def _refusal(record: ConfigRecord, name: str) -> Refusal | None:
    value = _text(record, name)
    try:
        return Refusal(value) if value else None
    except ValueError:
        raise ProtocolError(f"{name}: is not a reason that this protocol knows") from None


def _flag(record: ConfigRecord, name: str) -> bool:
    value = record[name]
    if not isinstance(value, bool):
        raise ProtocolError(f"{name}: must be true or false")
    return value


def _count(record: MetricRecord | ConfigRecord, name: str) -> int:
    value = record[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ProtocolError(f"{name}: must be a whole number, not negative")
    return value


def _number(record: MetricRecord, name: str) -> float:
    value = record[name]
    if not isinstance(value, float) or math.isinf(value):
        raise ProtocolError(f"{name}: must be a number")
    return value


__all__: Sequence[str] = [
    "FORMAT",
    "HELLO",
    "PIECE_BYTES",
    "WAIT",
    "ErrorCode",
    "Piece",
    "Progress",
    "Refusal",
    "Result",
    "SiteInfo",
    "Task",
    "Update",
    "Vector",
    "WeightLayout",
    "is_progress",
    "pack_hello",
    "pack_info",
    "pack_progress",
    "pack_result",
    "pack_task",
    "pack_tasks",
    "pack_wait",
    "pack_weights",
    "unpack_hello",
    "unpack_info",
    "unpack_progress",
    "unpack_result",
    "unpack_task",
    "unpack_wait",
]
