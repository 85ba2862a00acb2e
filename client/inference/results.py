"""Which files the results of a prediction become, and what they must never replace."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import ConfigError, OutputError
from common.formatting import counted
from common.imaging.datasets.case import Case
from common.imaging.io.nifti import nifti_stem

SegmentationKind = Literal["binary", "labelmap", "fractional"]
"""Kinds of DICOM-SEG: one bit for each voxel of a structure; numbers of structures; probabilities in steps of 1/255."""

_DICOM_SUFFIX = ".dcm"


@dataclass(frozen=True)
class ResultForms:
    """What is written for a scan.

    Attributes
    ----------
    format
        ``dicom``, ``nifti`` or ``both``; None for DICOM if the scan is a DICOM series and the output is not named as a
        NIfTI file.
    segmentation
        Kind of the DICOM-SEG.
    report
        Write sizes of structures as a structured report too.
    probabilities
        Write the probability of every class as NIfTI too.
    """

    format: Literal["dicom", "nifti", "both"] | None = None
    segmentation: SegmentationKind = "binary"
    report: bool = False
    probabilities: bool = False


USUAL_FORMS = ResultForms()


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case; None for what is not written.

    Attributes
    ----------
    label, probabilities
        NIfTI.
    segmentation, report
        DICOM.
    """

    label: Path | None = None
    probabilities: Path | None = None
    segmentation: Path | None = None
    report: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for path in (self.label, self.probabilities, self.segmentation, self.report) if path)

    @property
    def folder(self) -> Path:
        """The folder that they are in."""
        return self.all[0].parent


def counts_of(files: Sequence[CaseFiles]) -> str:
    """Say how many results of each kind there are; empty for none."""
    kinds = {
        "label map": [one.label for one in files],
        "file with probabilities": [one.probabilities for one in files],
        "DICOM-SEG": [one.segmentation for one in files],
        "structured report": [one.report for one in files],
    }
    plurals = {"file with probabilities": "files with probabilities", "DICOM-SEG": "DICOM-SEG"}
    found = {kind: sum(path is not None for path in paths) for kind, paths in kinds.items()}
    return ", ".join(counted(count, kind, plurals.get(kind)) for kind, count in found.items() if count)


def targets_of(cases: tuple[Case, ...], input_path: Path, output_path: Path, forms: ResultForms) -> list[CaseFiles]:
    """Return the files to write for each case.

    Raises
    ------
    ConfigError
        The forms contradict each other, or the scans are no DICOM series.
    OutputError
        There is one file name for several results.
    """
    is_dicom = any(case.series is not None for case in cases)
    is_file = not output_path.is_dir() and (nifti_stem(output_path) is not None or _is_dicom_name(output_path))
    written = _formats(forms, is_dicom, output_path)
    if not is_file:
        return [_files(output_path, case.name, written, forms) for case in cases]
    is_one_series = len(cases) == 1 and cases[0].series is not None
    if input_path.is_dir() and not is_one_series:
        raise OutputError(f"{output_path}: is a file name, but the input is a folder; give a folder for the results")
    if len(written) > 1:
        raise OutputError(f"{output_path}: is a file name, but there are several results; give a folder for them")
    if (nifti_stem(output_path) is None) is ("nifti" in written):
        suffix = ".nii.gz" if "nifti" in written else _DICOM_SUFFIX
        raise OutputError(f"{output_path}: use a file name that ends in {suffix}, or give a folder")
    stem = nifti_stem(output_path) or output_path.stem
    named = _files(output_path.parent, stem, written, forms)
    if "nifti" in written:
        return [CaseFiles(output_path, named.probabilities)]
    return [CaseFiles(segmentation=output_path, report=named.report)]


def _is_dicom_name(path: Path) -> bool:
    return path.suffix.lower() == _DICOM_SUFFIX


def _formats(forms: ResultForms, is_dicom: bool, output_path: Path) -> tuple[str, ...]:
    """Return the formats to write, after a check that they fit the scans and each other."""
    usual = "dicom" if is_dicom and not (nifti_stem(output_path) and not output_path.is_dir()) else "nifti"
    chosen = forms.format or usual
    written = ("dicom", "nifti") if chosen == "both" else (chosen,)
    if "dicom" in written and not is_dicom:
        raise ConfigError("a DICOM-SEG refers to a DICOM series, but these scans are NIfTI files: use --format nifti")
    if "dicom" not in written and (forms.report or forms.segmentation != "binary"):
        raise ConfigError(
            "a structured report, and --seg, are for DICOM results: give a DICOM series as input and a folder as "
            "output, and leave out --format nifti"
        )
    if forms.probabilities and "nifti" not in written:
        raise ConfigError("--probabilities writes NIfTI: add --format both, or use --seg fractional instead")
    return written


def _files(folder: Path, name: str, written: tuple[str, ...], forms: ResultForms) -> CaseFiles:
    dicom, nifti = "dicom" in written, "nifti" in written
    return CaseFiles(
        label=folder / f"{name}.nii.gz" if nifti else None,
        probabilities=folder / f"{name}_probabilities.nii.gz" if nifti and forms.probabilities else None,
        segmentation=folder / f"{name}_seg.dcm" if dicom else None,
        report=folder / f"{name}_sr.dcm" if dicom and forms.report else None,
    )


def check_targets(targets: list[CaseFiles], cases: tuple[Case, ...], overwrite: bool) -> None:
    """Check, before any work, that every result can be written and replaces nothing that must stay.

    Raises
    ------
    OutputError
        A result is a scan, a result of another case too, exists without ``overwrite``, or cannot be written.
    """
    files = [path for target in targets for path in target.all]
    scans = {image.resolve() for case in cases for image in case.image_files}
    owners: dict[Path, str] = {}
    for case, target in zip(cases, targets, strict=True):
        for path in target.all:
            if path in owners:
                both = f"would be a result of both {owners[path]} and {case.name}"
                raise OutputError(f"{path}: {both}; rename one of the scans, or write fewer kinds of results")
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
