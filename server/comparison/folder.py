"""The folder of a comparison: ``comparison.json`` says what is compared, and ``runs`` holds a run folder per model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.federation import FederationConfig
from common.errors import ConfigError, OutputError
from common.system.ownership import Claim
from common.system.state_file import check_digest, digest_of_file, read_sealed, write_sealed
from server.comparison.arms import Arm
from server.run_store.folder import PARTITION_FILE, PLAN_FILE
from server.run_store.locks import only_start
from server.simulation.data_record import DATA_FILE
from server.simulation.leftovers import COMPARISON_FILE, COMPARISON_PREPARED, leftovers_of_comparison
from server.simulation.run_opening import differences

RUNS = "runs"
_FILES = (PLAN_FILE, PARTITION_FILE, DATA_FILE)
_RESTORE = "restore it from a backup, or compare anew in another --out"
_SAME_RESULT = {"description", "initial_model"}
"""Keys that decide no result: the initial model is known by its hash."""


@dataclass(frozen=True)
class Question:
    """What is compared: a federation's arms, and the seeds of each of them."""

    config: FederationConfig
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        federation = self.config.model_dump(mode="json", exclude=_SAME_RESULT)
        return {
            "federation": federation,
            "arms": [arm.name for arm in self.arms],
            "changes": {arm.name: list(arm.changes) for arm in self.arms},
            "seeds": list(self.seeds),
        }


class ComparisonFolder:
    """A comparison's folder, owned by this process.

    Attributes
    ----------
    begun
        Whether a run may exist in it.
    """

    def __init__(self, path: Path, claim: Claim) -> None:
        self.path = path
        self._claim = claim
        self.begun = (path / RUNS).is_dir()

    def begin(self, question: Question) -> None:
        """Write down what is compared; from now on everything stays."""
        digests = {name: digest_of_file(self.path / name) for name in _FILES}
        write_sealed(self.path / COMPARISON_FILE, question.as_json() | {"files": digests})
        (self.path / RUNS).mkdir(exist_ok=True)
        self._claim.keep()

    def check(self, question: Question) -> None:
        """Check that a comparison that has begun asked the same, or less.

        Raises
        ------
        ConfigError
            The federation differs, or an arm or a seed is left out.
        DamagedFileError
            A file of the comparison was changed.
        """
        content, _ = read_sealed(self.path / COMPARISON_FILE, _RESTORE)
        now = question.as_json()
        if changed := differences(content["federation"], now["federation"]):
            raise ConfigError(
                f"{self.path}: compares a different federation ({', '.join(changed[:5])}); use the same file and --set "
                "values, or choose another --out"
            )
        for option, key in (("--arms", "arms"), ("--seeds", "seeds")):
            if missing := [value for value in content[key] if value not in now[key]]:
                raise ConfigError(
                    f"{option}: {self.path} also compares {key[:-1]} {', '.join(map(str, missing))}; name all that it "
                    f"has and any that are new, or choose another --out"
                )
        for arm, before in content["changes"].items():
            if before != now["changes"][arm]:
                raise ConfigError(
                    f"--set-arm {arm}: {self.path} has {', '.join(before) or 'no change'} for this arm; use the same, "
                    f"or compare it as a variant ({arm.partition('@')[0]}@NAME)"
                )
        for name, digest in content["files"].items():
            check_digest(self.path / name, digest, _RESTORE)


@contextlib.contextmanager
def open_comparison(path: Path, question: Question) -> Iterator[ComparisonFolder]:
    """Own the folder of a comparison for a block.

    What a killed start left before its first run is removed. If the block raises before the comparison has begun,
    nothing stays.

    Raises
    ------
    FedvoxError
        Another process works on it.
    OutputError
        The folder holds something else, or cannot be made.
    ConfigError, DamagedFileError
        As ``ComparisonFolder.check``.
    """
    _leftovers(path)
    with only_start(path, COMPARISON_PREPARED) as claim:
        left = _leftovers(path)
        folder = ComparisonFolder(path, claim)
        if folder.begun:
            claim.keep()
            folder.check(question)
        else:
            # The file that proves that the others are a comparison's goes last, and comes first.
            for name in sorted(left, key=lambda name: name == COMPARISON_FILE):
                claim.clear(name)
            write_sealed(path / COMPARISON_FILE, question.as_json())
        yield folder


def _leftovers(path: Path) -> Sequence[str]:
    """Return what a killed start left; refuse a folder that holds something else."""
    try:
        if not path.exists() or ((path / RUNS).is_dir() and (path / COMPARISON_FILE).is_file()):
            return ()
        found = leftovers_of_comparison(path) if path.is_dir() else None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}; choose another --out") from None
    if found is None:
        raise OutputError(f"{path}: exists already and is not the folder of a comparison; choose another --out")
    return sorted(found)
