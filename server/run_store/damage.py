"""Checks the files that a run rests on against the digests in its state, before the run is resumed."""

from __future__ import annotations

from pathlib import Path

from common.errors import DamagedFileError
from common.system.state_file import check_digest, digest_of_file, put_aside
from server.run_store.folder import RESTORE, ROUNDS_FILE, RunFolder, RunState

SUMMARY_FILE = "summary.json"
_RESULTS = ("model/*.json", "model/*.safetensors", "validation.csv", "examples/*.npz", SUMMARY_FILE)


def check_files(folder: RunFolder, state: RunState) -> list[str]:
    """Check every file that the state names by its digest.

    Two kinds of files are put aside (renamed to ``NAME.damaged``) instead of stopping the run. Results are made again:
    their summary goes too, without which a run does not count as finished. The best checkpoint is not needed to go on;
    the best round is sought anew among the rounds that follow.

    Returns
    -------
    list[str]
        A sentence for each file that was put aside.

    Raises
    ------
    DamagedFileError
        The run cannot go on without the file.
    """
    damaged = _damage(folder, state)
    for name, found in damaged.items():
        if not _is_result(name) and not _may_be_lost(folder, state, name):
            raise found
    asides = {name: put_aside(found.path) for name, found in damaged.items()}
    told = []
    for name, found in damaged.items():
        what = _do_without(folder, state, name, {*filter(_is_result, damaged)})
        aside = asides[name]
        told.append(f"{found.path}: {found.problem}; {what}{f'; it is now {aside.name}' if aside else ''}")
    if damaged:
        # First, or a line that a crash left without its state would count as finished.
        folder.rewind(state)
        folder.commit(state)
    for text in told:
        folder.event("damaged_file", what=text)
    return told


def find_damage(folder: RunFolder) -> list[str]:
    """Return a sentence for each damaged file, named within the folder, and leave them as they are."""
    try:
        state = folder.load_state()
        found = [] if state is None else list(_damage(folder, state).values())
    except DamagedFileError as error:
        found = [error]
    return [f"{error.path.relative_to(folder.path)}: {error.problem}." for error in found]


def check_model(folder: RunFolder) -> None:
    """Check that the released model is the one of this run, as it was released.

    Raises
    ------
    DamagedFileError
        It is another one, or the state that says which it is is damaged.
    """
    state = folder.load_state()
    for name, digest in ({} if state is None else state.digests).items():
        if name.startswith("model/"):
            check_digest(folder.path / name, digest, "resume the run, which makes it again")


def note_results(folder: RunFolder, state: RunState) -> None:
    """Commit the state of a finished run with the digests of its results."""
    for path in (path for pattern in _RESULTS for path in folder.path.glob(pattern)):
        folder.note(path, digest_of_file(path))
    folder.commit(state)


def _damage(folder: RunFolder, state: RunState) -> dict[str, DamagedFileError]:
    damaged = {}
    for name, digest in state.digests.items():
        try:
            if name == ROUNDS_FILE:
                folder.check_lines(state)
            else:
                check_digest(folder.path / name, digest, RESTORE)
        except DamagedFileError as error:
            damaged[name] = error
    return damaged


def _is_result(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in _RESULTS)


def _may_be_lost(folder: RunFolder, state: RunState, name: str) -> bool:
    return any(folder.path / name == folder.checkpoint_path(number) for number in state.checkpoints - {state.round})


def _do_without(folder: RunFolder, state: RunState, name: str, results: set[str]) -> str:
    """Change the state to one that does not rest on a file, and say what that means."""
    state.digests.pop(name, None)
    if _is_result(name):
        (folder.path / SUMMARY_FILE).unlink(missing_ok=True)
        state.digests.pop(SUMMARY_FILE, None)
        return "it is made again"
    if SUMMARY_FILE in state.digests and not results:
        return "the model was released from it before, and is as it was"
    lost = {number for number in state.checkpoints if folder.checkpoint_path(number) == folder.path / name}
    state.candidates = [number for number in state.candidates if number not in lost]
    state.recent = [number for number in state.recent if number not in lost]
    if folder.checkpoint_path(state.released_round) != folder.path / name:
        return "the model that it held is lost, and will be neither released nor averaged"
    state.best_round = state.best_mean_dice = state.highest_median_dice = None
    return "the model that it held is lost, and the best round is sought anew"
