"""The run folder, which holds everything that survives a crash.

``state.json`` is the commit point of a round. It is replaced last, after the round's checkpoint and its line in
``rounds.jsonl``. When a run resumes, uncommitted lines and checkpoints are dropped.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import FedvoxError, OutputError
from common.protocol.codec import Refusal, Vector, WeightLayout
from common.system.files import write_atomically
from common.weights.safetensors_file import float32_header, read_shapes
from common.weights.store import MissingWeightsError, map_file, open_to_overwrite, write_all

_SPARE = ".spare.part"
FLUSH_BYTES = 8 * 2**20


class RunError(FedvoxError):
    """The run folder cannot be used as requested."""


class RunState(BaseModel):
    """Everything that the round loop needs to resume, besides the weights.

    Attributes
    ----------
    round
        Number of finished training rounds; their result is checkpoint ``round``.
    best_round, best_mean_dice
        The checkpoint with the best mean validation Dice over sites so far; with noise on the scores, the last one
        that is not clearly worse.
    highest_mean_dice
        Highest of all checkpoints; differs from ``best_mean_dice`` only with noise.
    rounds_without_gain
        Scored checkpoints since the last gain of more than the early stop's ``min_delta``.
    accepted_rounds
        Finished rounds that changed the model.
    failed_rounds
        Rounds in a row with too few updates.
    norms
        Site -> L2 norm of its last accepted update.
    conduct
        Site -> what it was blamed for in each of its last rounds, None for nothing.
    refused_last
        Site -> why its last reply was refused.
    quarantine
        Site -> why it is in quarantine.
    declared
        Site -> the numbers of training and validation patients that it declared first.
    alarms
        What a person should look at: key -> sentence, in the order of their first appearance.
    strategy_round
        The round after which the strategy's vectors were written; 0 before the first.
    strategy_numbers
        Numbers that the strategy keeps.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    run: str
    digest: str
    started: str
    round: int = 0
    best_round: int | None = None
    best_mean_dice: float | None = None
    highest_mean_dice: float | None = None
    final_mean_dice: float | None = None
    rounds_without_gain: int = 0
    accepted_rounds: int = 0
    failed_rounds: int = 0
    stopped_early: bool = False
    finished: bool = False
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    norms: dict[str, float] = Field(default_factory=dict)
    conduct: dict[str, list[Refusal | None]] = Field(default_factory=dict)
    refused_last: dict[str, Refusal] = Field(default_factory=dict)
    quarantine: dict[str, Refusal] = Field(default_factory=dict)
    declared: dict[str, tuple[int, int]] = Field(default_factory=dict)
    alarms: dict[str, str] = Field(default_factory=dict)
    strategy_round: int = 0
    strategy_numbers: dict[str, float] = Field(default_factory=dict)

    @property
    def released_round(self) -> int:
        """Round after which the model is the one to release."""
        return self.round if self.best_round is None else self.best_round


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunFolder:
    """The files of one run.

    Parameters
    ----------
    path
        An existing folder, from ``create`` or ``open``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Create the folder; refuse one that is not empty.

        Raises
        ------
        OutputError
            It exists and is not empty, or cannot be created.
        """
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise OutputError(f"{path}: exists already; choose another --out, or continue it with --resume")
            (path / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{path}: cannot be made: {error.strerror or error}; choose another --out") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder.

        Raises
        ------
        RunError
            There is no run folder at ``path``.
        """
        if not (path / "federation.yaml").is_file():
            raise RunError(f"{path}: is not a run folder (it has no federation.yaml); give the folder of a run")
        return cls(path)

    def write_text(self, name: str, content: str) -> None:
        """Write one of the run's files."""
        write_atomically(self.path / name, content)

    def load_state(self) -> RunState | None:
        """Return the last committed state, or None before the first.

        Raises
        ------
        RunError
            The file is damaged.
        """
        file = self.path / "state.json"
        if not file.exists():
            return None
        try:
            return RunState.model_validate_json(file.read_bytes())
        except (ValidationError, OSError):
            raise RunError(f"{file}: is damaged; restore it from a backup, or start a new run") from None

    def begin(self, digest: str, engine: str) -> None:
        """Commit the first state of a new run, whose checkpoint 0 already exists.

        Parameters
        ----------
        digest
            Digest of the federation's configuration.
        engine
            What the run's sites run on, for ``events.jsonl``.
        """
        state = RunState(run=secrets.token_hex(8), digest=digest, started=now())
        self.commit(state)
        self.event("started", run=state.run, engine=engine)

    def commit(self, state: RunState) -> None:
        """Commit ``state``, from which the run resumes after a crash."""
        write_atomically(self.path / "state.json", state.model_dump_json(indent=2) + "\n")

    def rewind(self, state: RunState) -> None:
        """Drop uncommitted leftovers of a crash: lines and checkpoints of later rounds, and partial files.

        Safe to call at any time before the next round, and for a finished run.
        """
        rounds = state.round + 1 if state.finished else state.round
        lines = self.read_rounds()
        kept = [line for line in lines if line["round"] <= rounds]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        file = self.path / "rounds.jsonl"
        if file.exists() and file.read_text(encoding="utf-8") != text:
            write_atomically(file, text)
        best = {state.best_round} if state.best_round is not None else set()
        self.keep_checkpoints({state.round, *best}, state.strategy_round)
        for partial in [*self.path.glob(".*.part"), *(self.path / "checkpoints").glob(".*.part")]:
            partial.unlink(missing_ok=True)

    def read_rounds(self) -> list[dict[str, Any]]:
        """Return the lines of ``rounds.jsonl`` up to the first incomplete one."""
        file = self.path / "rounds.jsonl"
        if not file.exists():
            return []
        lines = []
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
        return lines

    def append_round(self, line: Mapping[str, Any]) -> None:
        """Add a line to ``rounds.jsonl``."""
        self._append("rounds.jsonl", line)

    def event(self, event: str, **details: Any) -> None:
        """Add a line to ``events.jsonl``."""
        self._append("events.jsonl", {"time": now(), "event": event, **details})

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        file = self.path / name
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise OutputError(f"{file}: cannot be written: {error.strerror or error}") from None

    def checkpoint_path(self, round_number: int) -> Path:
        """Return the path of the model after ``round_number`` rounds; 0 is the initial model."""
        return self.path / "checkpoints" / f"round_{round_number:04d}.safetensors"

    def write_checkpoint(self, round_number: int, parts: Iterable[Vector], layout: WeightLayout) -> Iterator[Vector]:
        """Write the global weights after a round, as safetensors, and yield each of ``parts`` as it passes through.

        The file appears, flushed to disk, once the last part is read. It overwrites an obsolete checkpoint, because
        allocating new pages for a file costs ten times as much as writing them.
        """
        path, header = self.checkpoint_path(round_number), _header(round_number, layout)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        written = 0
        try:
            # Write and flush while the caller processes the parts, so that the final flush is short.
            with open_to_overwrite(temporary, path.with_name(_SPARE)) as file, ThreadPoolExecutor(1) as writer:
                writing = writer.submit(_write_through, file, np.frombuffer(header, np.uint8))
                for part in parts:
                    writing.result()
                    writing = writer.submit(_write_through, file, np.ascontiguousarray(part, "<f4").view(np.uint8))
                    written += part.size
                    yield part
                writing.result()
                if written != layout.size:
                    raise RunError(f"{written} weights do not fit the plan's model, which has {layout.size}")
                file.truncate(file.tell())
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}; free space") from None
        finally:
            temporary.unlink(missing_ok=True)

    def save_checkpoint(self, round_number: int, weights: Vector, layout: WeightLayout) -> None:
        """Write the global weights after a round, as safetensors."""
        for _ in self.write_checkpoint(round_number, [weights], layout):
            pass

    def layout(self, round_number: int) -> WeightLayout:
        """Return the weights' layout from a round's checkpoint, without comparing it with the plan.

        Raises
        ------
        RunError
            The file is missing or damaged.
        """
        file = self.checkpoint_path(round_number)
        try:
            return WeightLayout(read_shapes(file))
        except (OSError, ValueError):
            raise RunError(f"{file}: is missing or damaged; restore it from a backup, or start a new run") from None

    def checkpoint_values(self, round_number: int, layout: WeightLayout) -> tuple[Path, int]:
        """Return a round's checkpoint file, and the byte offset of its weights as one float32 vector."""
        return self.checkpoint_path(round_number), len(_header(round_number, layout))

    def map_checkpoint(self, round_number: int, layout: WeightLayout) -> Vector:
        """Return the global weights after a round, read-only and memory-mapped.

        Raises
        ------
        RunError
            The file is missing, damaged or of another model.
        """
        file, header = self.checkpoint_path(round_number), _header(round_number, layout)
        try:
            with file.open("rb") as stream:
                found = stream.read(len(header))
            content = map_file(file, len(header))
        except (OSError, MissingWeightsError):
            content, found = np.empty(0, np.uint8), b""
        if not found or content.size != 4 * layout.size:
            raise RunError(f"{file}: is missing or damaged; restore it from a backup, or start a new run")
        if found != header:
            raise RunError(f"{file}: holds another model than plan.json describes; start a new run")
        return content.view("<f4").astype(np.float32, copy=False)

    def load_checkpoint(self, round_number: int, layout: WeightLayout) -> Vector:
        """Return the weights as ``map_checkpoint`` does, but writable; writes never reach the file."""
        self.map_checkpoint(round_number, layout)
        file, offset = self.checkpoint_values(round_number, layout)
        return np.memmap(file, "<f4", "c", offset, (layout.size,)).view(np.ndarray).astype(np.float32, copy=False)

    def keep_checkpoints(self, rounds: set[int], strategy_round: int = 0) -> None:
        """Remove checkpoints except those of ``rounds``, and strategy vectors except those of ``strategy_round``."""
        kept = {self.checkpoint_path(number) for number in rounds}
        for file in (self.path / "checkpoints").glob("round_*.safetensors"):
            if file not in kept:
                file.replace(file.with_name(_SPARE))
        for file in (self.path / "checkpoints").glob("strategy_*.f32"):
            if not file.name.startswith(f"strategy_{strategy_round:04d}_"):
                file.unlink()

    def strategy_vector_path(self, round_number: int, name: str) -> Path:
        """Return the path of a strategy's vector: raw little-endian float32 values."""
        return self.path / "checkpoints" / f"strategy_{round_number:04d}_{name}.f32"


def _write_through(file: BinaryIO, content: NDArray[np.uint8]) -> None:
    write_all(file, content)
    if file.tell() // FLUSH_BYTES > (file.tell() - content.size) // FLUSH_BYTES:
        os.fdatasync(file.fileno())


def _header(round_number: int, layout: WeightLayout) -> bytes:
    """Return a checkpoint's header; the vector follows it, in the order of the layout."""
    return float32_header(layout.shapes, {"round": str(round_number)})
