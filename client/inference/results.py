"""Where the results of a prediction go, and what they must never replace."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common.errors import OutputError
from common.imaging.datasets.case import Case
from common.imaging.io.nifti import nifti_stem


def targets_of(
    cases: tuple[Case, ...], input_path: Path, output_path: Path, probabilities: bool
) -> list[tuple[Path, ...]]:
    """Return the files to write for each case: the label map and, if requested, the probabilities.

    Raises
    ------
    OutputError
        There is one file name for the results of a folder that is not one DICOM series.
    """
    names = [output_path / f"{case.name}.nii.gz" for case in cases]
    if nifti_stem(output_path) and not output_path.is_dir():
        is_one_series = len(cases) == 1 and cases[0].series is not None
        if input_path.is_dir() and not is_one_series:
            raise OutputError(
                f"{output_path}: is a file name, but the input is a folder; give a folder for the results"
            )
        names = [output_path]
    if not probabilities:
        return [(name,) for name in names]
    return [(name, name.with_name(f"{nifti_stem(name)}_probabilities.nii.gz")) for name in names]


def check_targets(targets: list[tuple[Path, ...]], cases: tuple[Case, ...], overwrite: bool) -> None:
    """Check, before any work, that every result can be written and replaces nothing that must stay.

    Raises
    ------
    OutputError
        A result is a scan, a result of another case too, exists without ``overwrite``, or cannot be written.
    """
    files = [path for paths in targets for path in paths]
    scans = {image.resolve() for case in cases for image in case.images}
    owners: dict[Path, str] = {}
    for case, paths in zip(cases, targets, strict=True):
        for path in paths:
            if path in owners:
                both = f"would be a result of both {owners[path]} and {case.name}"
                raise OutputError(f"{path}: {both}; rename one of the scans, or leave out --probabilities")
            owners[path] = case.name
    for path in files:
        if path.resolve() in scans:
            raise OutputError(f"{path}: is one of the scans; choose another folder or name for the results")
    existing = [path for path in files if path.exists()]
    if existing and not overwrite:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise OutputError(f"{existing[0]}: exists{more}; choose another place, or replace results with --overwrite")
    for folder in sorted({path.parent for path in files}):
        check_writable(folder)


def check_writable(folder: Path) -> None:
    """Create a folder for results and check, before any work, that it is writable.

    Raises
    ------
    OutputError
        The folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}; choose another place") from error
