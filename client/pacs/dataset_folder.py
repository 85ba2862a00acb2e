"""The dataset that imports fill, and the folder beside it, which says what is there and by which secret."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ConfigError, FedvoxError
from common.system.files import PRIVATE, cannot_write, flush_folder, write_atomically
from common.system.locks import lock_for_one

_LOCK_FILE, _SECRET_FILE = "lock", "identities"
_OWN_FOLDER = 0o700


class ImportRunningError(FedvoxError):
    """Another process imports into the same folder."""


class DatasetFolder:
    """A dataset, and beside it a folder for what does not belong to it.

    Parameters
    ----------
    out
        The dataset. A link is followed, so that a dataset has one folder beside it, however it is called.

    Attributes
    ----------
    out
        The dataset.
    beside
        For reports, the audit log and what imports note here; for the owner alone.
    work
        In it, for files that have just come and are not de-identified.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()
        self.beside = self.out.with_name(f"{self.out.name}.import")
        self.work = self.beside / "incoming"
        self._notes = self.beside / "studies"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folders, remove what an earlier import left unfinished, and keep others away for a block.

        Raises
        ------
        ImportRunningError
            Another process imports into this dataset.
        OutputError
            A folder cannot be made.
        """
        lock = self.beside / _LOCK_FILE
        with _told(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self.beside.mkdir(exist_ok=True)
            self.beside.chmod(_OWN_FOLDER)
        taken = ImportRunningError(f"{lock}: another import into {self.out} is running; wait for its end")
        with lock_for_one(lock, taken):
            with _told(self.out):
                self._tidy()
            try:
                yield
            finally:
                shutil.rmtree(self.work, ignore_errors=True)

    def _tidy(self) -> None:
        for folder in [self.work, *self.out.glob(".study-*.part")]:
            shutil.rmtree(folder, ignore_errors=True)
        self.work.mkdir(mode=_OWN_FOLDER)
        self._notes.mkdir(mode=_OWN_FOLDER, exist_ok=True)
        for file in [*self.beside.glob(".*.part"), *self._notes.glob(".*.part")]:
            file.unlink()

    def require_secret(self, name: str) -> None:
        """Require that studies were imported with one secret: with another, they would be there a second time.

        Parameters
        ----------
        name
            Of the secret, as ``Identities`` has it.

        Raises
        ------
        ConfigError
            An earlier import used another one.
        """
        path = self.beside / _SECRET_FILE
        try:
            earlier = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({type(error).__name__}); restore it from a backup") from None
        if earlier != name and any(self.out.glob("study-*")):
            raise ConfigError(
                f"--identities: {self.out} was imported with another secret; give the folder of that one, or another "
                "--out, so that no study is there twice"
            )

    def note_secret(self, name: str) -> None:
        """Write down with which secret studies are imported.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        write_atomically(self.beside / _SECRET_FILE, f"{name}\n", mode=PRIVATE)

    def note_study(self, name: str, folder: Path) -> None:
        """Write down which files a study has, before it appears under its name.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*"))}
        write_atomically(self._note_of(name), json.dumps(sizes, indent=1) + "\n", mode=PRIVATE)
        flush_folder(self._notes)

    def why_not_whole(self, name: str) -> str:
        """Return why a study that is there is not as it was imported; empty if it is. It may have more files."""
        try:
            sizes = json.loads(self._note_of(name).read_bytes())
            lost = [file for file, size in sizes.items() if _size(self.out / name / file) != size]
        except FileNotFoundError:
            return f"nothing says which files {name} should have"
        except (OSError, ValueError, AttributeError, RecursionError):
            return f"what says which files {name} should have cannot be read: {self._note_of(name)}"
        return f"{len(lost)} of the {len(sizes)} files in {name} are missing or changed" if lost else ""

    def _note_of(self, name: str) -> Path:
        return self._notes / f"{name}.json"


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(Path(error.filename or folder), error) from None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
