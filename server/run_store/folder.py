"""The run folder, which holds everything that survives a crash.

``state.json`` is the commit point of a round. It is replaced last, after the round's checkpoint and its line in
``rounds.jsonl``. When a run resumes, uncommitted lines and checkpoints are dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from common.errors import DamagedFileError, OutputError
from common.plan.plan import Plan
from common.protocol.codec import Vector, WeightLayout
from common.system.files import OWN_FILE, write_atomically
from common.system.state_file import CHANGED, MISSING, digest_of_file, read_sealed, write_sealed
from common.weights.safetensors_file import float32_header, read_shapes
from common.weights.store import MissingWeightsError, map_file
from server.run_store.locks import START_LOCK
from server.run_store.site_reports import SiteReports
from server.run_store.state import RunError, RunState
from server.run_store.weight_file import SPARE, WeightFile

RESTORE = "restore it from a backup, or start a new run in another folder"
"""What to do about a damaged file that the run cannot go on without."""
AUDIT_FILE = "audit.jsonl"
FEDERATION_FILE = "federation.yaml"
PLAN_FILE = "plan.json"
PARTITION_FILE = "partition.json"
REPORT_FILE = "report.html"
ROUNDS_FILE = "rounds.jsonl"
STATE_FILE = "state.json"
TRACKING_LOCK = "tracking.lock"


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunFolder:
    """The files of one run.

    Parameters
    ----------
    path
        An existing folder, from ``create`` or ``open``.

    Attributes
    ----------
    round_digests
        SHA-256 of line, state and checkpoint of the round that was committed last.
    reports
        What sites have reported of their ledgers and audit logs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.round_digests: dict[str, str] = {}
        self._written: dict[str, str] = {}
        self._seal = ""
        self.reports = SiteReports(path)

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Create the folder; refuse one that holds more than the lock of its start.

        Raises
        ------
        OutputError
            It exists and is not empty, or cannot be created.
        """
        try:
            if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - {START_LOCK}):
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
        if not (path / FEDERATION_FILE).is_file():
            raise RunError(f"{path}: is not a run folder (it has no federation.yaml); give the folder of a run")
        return cls(path)

    def write_text(self, name: str, content: str) -> None:
        """Write one of the run's files."""
        write_atomically(self.path / name, content)

    def load_state(self) -> RunState | None:
        """Return the last committed state, or None before the first.

        Raises
        ------
        DamagedFileError
            The file is damaged, or missing although the run has begun.
        """
        file = self.path / STATE_FILE
        if not file.exists():
            if trace := self._trace_of_rounds():
                raise DamagedFileError(file, f"{MISSING}, although the run has begun ({trace})", RESTORE)
            return None
        content, seal = read_sealed(file, RESTORE)
        try:
            state = RunState.model_validate(content)
        except ValidationError:
            advice = "use that version for this run, or start a new run in another folder"
            raise DamagedFileError(file, "was written by another version of Fedvox", advice) from None
        self._seal = seal
        return state

    def has_begun(self) -> bool:
        """Return whether the folder has a state, or something that a run has only after its first state."""
        return (self.path / STATE_FILE).exists() or self._trace_of_rounds() is not None

    def _trace_of_rounds(self) -> str | None:
        """Return the name of something that a run has only after its first state."""
        lines = self.path / ROUNDS_FILE
        if lines.exists() and lines.stat().st_size:
            return lines.name
        later = {path.name for path in (self.path / "checkpoints").glob("round_*")} - {self.checkpoint_path(0).name}
        if later:
            return min(later)
        return "model" if (self.path / "model").exists() else None

    def begin(self, digest: str, engine: str, files: Sequence[str] = ()) -> None:
        """Commit the first state of a new run, whose checkpoint 0 already exists.

        Parameters
        ----------
        digest
            Digest of the federation's configuration.
        engine
            What the run's sites run on, for ``events.jsonl``.
        files
            Names of the files that the run rests on, besides its checkpoints.
        """
        state = RunState(run=secrets.token_hex(8), digest=digest, started=now())
        for path in (self.checkpoint_path(0), *(self.path / name for name in files)):
            self.note(path, digest_of_file(path))
        self.commit(state)
        self.event("started", run=state.run, engine=engine)

    def note(self, path: Path, digest: str) -> None:
        """Let the next state name a file of the run folder by its SHA-256."""
        self._written[path.relative_to(self.path).as_posix()] = digest

    def commit(self, state: RunState) -> None:
        """Commit ``state``, from which the run resumes after a crash, with the digests of the files it rests on.

        Raises
        ------
        DamagedFileError
            ``rounds.jsonl`` was changed since the last time.
        """
        named = state.digests | self._written
        state.digests = {name: digest for name, digest in sorted(named.items()) if _rests_on(state, name)}
        self._written.clear()
        before = self._finished_lines(state)
        lines = self._read_lines()
        line, state.rounds_bytes = lines[len(before) :], len(lines)
        state.digests[ROUNDS_FILE] = hashlib.sha256(lines).hexdigest()
        state.round_state = "" if line else state.round_state or self._seal
        self._seal = write_sealed(self.path / STATE_FILE, state.model_dump(mode="json"))
        if line:
            self.round_digests = self._digests_of(state, line)

    def digests_of_last_round(self, state: RunState) -> dict[str, str]:
        """Return ``round_digests`` of the last round of a state that was loaded from this folder."""
        return self._digests_of(state, self._finished_lines(state).splitlines(keepends=True)[-1])

    def _digests_of(self, state: RunState, line: bytes) -> dict[str, str]:
        checkpoint = self.checkpoint_path(state.round).relative_to(self.path).as_posix()
        return {
            "line": hashlib.sha256(line).hexdigest(),
            "state": state.round_state or self._seal,
            "checkpoint": state.digests.get(checkpoint, ""),
        }

    def rewind(self, state: RunState) -> None:
        """Drop uncommitted leftovers of a crash: lines and checkpoints of later rounds, and partial files.

        Safe to call at any time before the next round, and for a finished run.

        Raises
        ------
        DamagedFileError
            A line of a finished round was changed or is missing.
        """
        finished = self._finished_lines(state)
        if self._read_lines() != finished:
            write_atomically(self.path / ROUNDS_FILE, finished, remedy=OWN_FILE)
        self.keep_checkpoints(state.checkpoints, state.strategy_round)
        for partial in [*self.path.glob(".*.part"), *(self.path / "checkpoints").glob(".*.part")]:
            partial.unlink(missing_ok=True)

    def read_rounds(self) -> list[dict[str, Any]]:
        """Return the lines of ``rounds.jsonl``, without one that a crash cut off.

        Raises
        ------
        DamagedFileError
            A line cannot be read.
        """
        return self._parsed(self._read_lines().splitlines(keepends=True))

    def last_round(self) -> dict[str, Any] | None:
        """Return the last of ``read_rounds``, or None; the same errors, but of its own line alone."""
        lines = self._read_lines().splitlines(keepends=True)
        return next(reversed(self._parsed(lines, max(0, len(lines) - 2))), None)

    def _parsed(self, lines: Sequence[bytes], first: int = 0) -> list[dict[str, Any]]:
        found = []
        for number, text in enumerate(lines[first:], start=first + 1):
            try:
                found.append(json.loads(text))
            except ValueError:
                if text.endswith(b"\n"):
                    problem = f"line {number} was changed or cut"
                    raise DamagedFileError(self.path / ROUNDS_FILE, problem, RESTORE) from None
        return found

    def _read_lines(self) -> bytes:
        file = self.path / ROUNDS_FILE
        try:
            return file.read_bytes() if file.exists() else b""
        except OSError as error:
            raise DamagedFileError(file, f"cannot be read: {error.strerror or error}", RESTORE) from None

    def _finished_lines(self, state: RunState) -> bytes:
        """Return the lines of all rounds that the state counts as finished."""
        lines = self._read_lines()[: state.rounds_bytes]
        if hashlib.sha256(lines).hexdigest() != state.digests.get(ROUNDS_FILE, hashlib.sha256().hexdigest()):
            raise DamagedFileError(self.path / ROUNDS_FILE, CHANGED, RESTORE)
        return lines

    def check_lines(self, state: RunState) -> None:
        """Check that ``rounds.jsonl`` begins with the lines of the finished rounds.

        Raises
        ------
        DamagedFileError
            It does not.
        """
        self._finished_lines(state)

    def plan(self) -> Plan:
        """Return the plan of the run.

        Raises
        ------
        DamagedFileError
            ``plan.json`` is missing or damaged.
        """
        file = self.path / PLAN_FILE
        try:
            return Plan.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise DamagedFileError(file, MISSING, RESTORE) from None
        except (OSError, ValidationError):
            raise DamagedFileError(file, "cannot be read as a plan", RESTORE) from None

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

        The file appears, flushed to disk, once the last part is read.
        """
        path = self.checkpoint_path(round_number)
        file = WeightFile(path, layout.size, _header(round_number, layout))
        try:
            for part in parts:
                file.add(part)
                yield part
            self.note(path, file.finish())
        finally:
            file.close()

    def save_checkpoint(self, round_number: int, weights: Vector, layout: WeightLayout) -> None:
        """Write the global weights after a round, as safetensors."""
        for _ in self.write_checkpoint(round_number, [weights], layout):
            pass

    def layout(self, round_number: int) -> WeightLayout:
        """Return the weights' layout from a round's checkpoint, without comparing it with the plan.

        Raises
        ------
        DamagedFileError
            The file is missing or damaged.
        """
        file = self.checkpoint_path(round_number)
        try:
            return WeightLayout(read_shapes(file))
        except (OSError, ValueError):
            raise DamagedFileError(file, "is missing or damaged", RESTORE) from None

    def checkpoint_values(self, round_number: int, layout: WeightLayout) -> tuple[Path, int]:
        """Return a round's checkpoint file, and the byte offset of its weights as one float32 vector."""
        return self.checkpoint_path(round_number), len(_header(round_number, layout))

    def map_checkpoint(self, round_number: int, layout: WeightLayout) -> Vector:
        """Return the global weights after a round, read-only and memory-mapped.

        Raises
        ------
        DamagedFileError
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
            raise DamagedFileError(file, "is missing or damaged", RESTORE)
        if found != header:
            raise DamagedFileError(file, "holds another model than plan.json describes", RESTORE)
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
                file.replace(file.with_name(SPARE))
        for file in (self.path / "checkpoints").glob("strategy_*.f32"):
            if not file.name.startswith(f"strategy_{strategy_round:04d}_"):
                file.unlink()

    def strategy_vector_path(self, round_number: int, name: str) -> Path:
        """Return the path of a strategy's vector: raw little-endian float32 values."""
        return self.path / "checkpoints" / f"strategy_{round_number:04d}_{name}.f32"


def _rests_on(state: RunState, name: str) -> bool:
    """Return whether a state needs a file; it does not need checkpoints and vectors of most other rounds."""
    folder, _, file = name.rpartition("/")
    if folder != "checkpoints":
        return True
    needed = {f"round_{number:04d}." for number in state.checkpoints}
    return file.startswith((*needed, f"strategy_{state.strategy_round:04d}_"))


def _header(round_number: int, layout: WeightLayout) -> bytes:
    """Return a checkpoint's header; the vector follows it, in the order of the layout."""
    return float32_header(layout.shapes, {"round": str(round_number)})


__all__ = ["RESTORE", "RunError", "RunFolder", "RunState", "now"]
