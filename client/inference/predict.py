"""Label maps for new scans, predicted by a model bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from client.inference.applied_model import AppliedModel, Prediction
from client.inference.results import USUAL_FORMS, CaseFiles, ResultForms, check_targets, targets_of
from client.inference.scores import score_array, softmax_in_place
from common.errors import ConfigError, DataError
from common.formatting import counted
from common.imaging import sliding_window
from common.imaging.datasets.case import Case, Problem, Reading, errors_of, load_case
from common.imaging.datasets.comparison import OWN_TERMS, SiteTerms, Wanted, compare, modality_problem
from common.imaging.datasets.dataset import Dataset, scan_dataset
from common.imaging.io.nifti import write_label, write_probabilities
from common.imaging.plausibility import header_contradictions
from common.imaging.preprocessing import (
    Preprocessed,
    preprocess_image,
    restore_prediction,
    restore_probabilities,
)
from common.imaging.threads import CountProgress
from common.imaging.volume import Volume
from common.models.bundle import Bundle, load_bundle
from common.system.devices import autocast_dtype, choose_device

FractionProgress = Callable[[float, str], None]
"""Called with the fraction of the whole job that is done, and the name of the current case."""


@dataclass(frozen=True)
class PredictionReport:
    """The result of :func:`predict_path`.

    Attributes
    ----------
    done
        Files of each scan that was predicted, in order of case names.
    failures
        Scans that could not be used, with the reason; the others were predicted.
    warnings
        Differences between the dataset's channels and the model's that may be only of words; what results lack.
    """

    done: tuple[CaseFiles, ...]
    failures: tuple[DataError, ...]
    warnings: tuple[str, ...] = ()

    @property
    def written(self) -> tuple[Path, ...]:
        """All results but files with probabilities."""
        return tuple(path for files in self.done for path in files.all if path != files.probabilities)

    @property
    def exit_status(self) -> int:
        """0 if every scan was predicted, else 1."""
        return 1 if self.failures else 0


@dataclass(frozen=True)
class PredictOptions:
    """How a model is applied to a scan.

    Attributes
    ----------
    overlap
        Fraction of a window that its neighbour also covers, from 0 to 0.9.
    mirror
        Also predict mirrored windows, along the axes that the plan allows; more accurate, and 2, 4 or 8 times slower.
    device
        ``auto``, ``cpu`` or ``cuda``.
    precision
        ``auto``, ``float32``, ``bfloat16`` or ``float16``.
    terms
        What the hospital's site file says about its data.
    """

    overlap: float = 0.5
    mirror: bool = False
    device: str = "auto"
    precision: str = "auto"
    terms: SiteTerms = OWN_TERMS


DEFAULT_OPTIONS = PredictOptions()


class Predictor:
    """A bundle's model, ready to label volumes of any shape, spacing and orientation.

    Parameters
    ----------
    bundle
        From :func:`common.models.bundle.load_bundle`.
    options
        How the model is applied.

    Raises
    ------
    ConfigError
        One of the options cannot be used here.
    """

    def __init__(self, bundle: Bundle, options: PredictOptions = DEFAULT_OPTIONS) -> None:
        if not 0 <= options.overlap <= 0.9:
            raise ConfigError(f"overlap: {options.overlap} is not between 0 and 0.9; 0.5 is usual")
        if options.mirror and not bundle.plan.mirror_axes:
            raise ConfigError("mirror: the plan of this model allows no mirroring (mirror_axes is empty); leave it out")
        self.plan = bundle.plan
        self.wanted = Wanted.by(bundle.plan, bundle.provenance.get("modality"))
        device = choose_device(options.device)
        autocast_dtype(device, options.precision)  # fail early if this device lacks the precision
        self._windows = sliding_window.WindowOptions(
            overlap=options.overlap,
            mirror_axes=bundle.plan.mirror_axes if options.mirror else (),
            device=device,
            precision=options.precision,
        )
        self.terms = options.terms
        self.applied = AppliedModel(
            bundle.plan,
            bundle.sha256,
            federation=str(bundle.provenance.get("federation") or ""),
            settings=(f"overlap={options.overlap:g}", f"mirror={options.mirror}", f"precision={options.precision}"),
        )
        self._model = bundle.build_model()

    @classmethod
    def open(cls, model_dir: Path, options: PredictOptions = DEFAULT_OPTIONS) -> Self:
        """Load the model of a bundle's folder.

        Raises
        ------
        BundleError
            The bundle cannot be used.
        ConfigError
            One of the options cannot be used here.
        """
        return cls(load_bundle(model_dir), options)

    def load(self, case: Case) -> tuple[Volume, NDArray[np.uint8] | None]:
        """Read a case: the scan, and its label map if it has one.

        Raises
        ------
        DataError
            The files cannot be used, are of another modality than the model's, lack the channels that it needs, or
            contradict themselves about sides or voxel sizes.
        """
        if text := modality_problem(case, self.wanted):
            raise DataError(case.images[0], text)
        volume, label = load_case(case, self.plan.labels)
        if not case.reading.ranges.accept_contradictions:
            for contradiction in header_contradictions(volume.source, case.reading.ranges):
                if contradiction.changes_input:
                    advice = ", or accept it: geometry.accept_contradictions in site.yaml"
                    raise DataError(case.images[0], contradiction.text + advice)
        found, needed = len(volume.array), len(self.plan.channels)
        if found != needed:
            text = f"has {counted(found, 'channel')}; this model needs {needed} ({', '.join(self.plan.channels)})"
            raise DataError(case.images[0], f"{text}: give scans with these channels, or another model")
        return volume, label

    def predict(
        self, volume: Volume, scratch: Path | None = None, progress: CountProgress | None = None
    ) -> NDArray[np.uint8]:
        """Label every voxel of a volume.

        Parameters
        ----------
        volume
            Volume with the plan's channels.
        scratch
            Folder for a temporary file if the scores are large; None keeps them in memory.
        progress
            Called with windows done and windows in all.

        Returns
        -------
        NDArray[np.uint8]
            Label map, uint8 (x, y, z) on ``volume.grid``.
        """
        prepared = preprocess_image(volume, self.plan.preprocessing)
        geometry = prepared.geometry
        if geometry.shape == geometry.cropped_shape:
            # Nothing to resample, so the scores of the whole volume are not needed at once.
            labels = np.zeros(geometry.grid.shape, dtype=np.uint8)
            labels[geometry.crop] = sliding_window.predict_labels(
                self._model, prepared.image, self.plan.patch_size, self._windows, progress=progress
            )
            return labels
        with self._logits(prepared, scratch, progress) as logits:
            return restore_prediction(logits, geometry)

    def predict_probabilities(
        self, volume: Volume, scratch: Path | None = None, progress: CountProgress | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Label every voxel as :meth:`predict` does, and return the probability of every class.

        The labels are identical to those of :meth:`predict`. They are resampled from logits, but the probabilities from
        the softmax of the averaged logits, so at a boundary the two may differ by a voxel.

        Returns
        -------
        tuple[NDArray[np.uint8], NDArray[np.float32]]
            Label map, uint8 (x, y, z), and probabilities, float32 (classes, x, y, z), background first; background is 1
            outside the crop.
        """
        prepared = preprocess_image(volume, self.plan.preprocessing)
        with self._logits(prepared, scratch, progress) as scores:
            labels = restore_prediction(scores, prepared.geometry)
            softmax_in_place(scores)
            return labels, restore_probabilities(scores, prepared.geometry)

    @contextmanager
    def _logits(
        self, prepared: Preprocessed, scratch: Path | None, progress: CountProgress | None
    ) -> Iterator[NDArray[np.float32]]:
        shape = (self.plan.model.classes, *prepared.image.shape[1:])
        with score_array(shape, scratch) as scores:
            sliding_window.sliding_window(
                self._model, prepared.image, self.plan.patch_size, self._windows, progress=progress, out=scores
            )
            yield scores


def predict_path(
    predictor: Predictor,
    input_path: Path,
    output_path: Path,
    *,
    forms: ResultForms = USUAL_FORMS,
    overwrite: bool = False,
    progress: FractionProgress | None = None,
) -> PredictionReport:
    """Label a scan or a folder of scans.

    Each label map is on its scan's own grid, in integers. A scan that cannot be used does not stop the others.

    Parameters
    ----------
    predictor
        The model.
    input_path
        A NIfTI file, or a folder of them (``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ... are the channels of one
        scan), or a dataset folder, whose images are used; or a DICOM file, or a folder with DICOM series.
    output_path
        For one file or series, a name ending in ``.nii.gz``, ``.nii`` or ``.dcm``; otherwise a folder, created if
        missing, for ``CASE.nii.gz``, or ``CASE_seg.dcm`` and ``CASE_sr.dcm``.
    forms
        Which files are written. Probabilities are ``CASE_probabilities.nii.gz``: float32, 4D, one volume per class,
        background first.
    overwrite
        Replace existing results; otherwise an existing result is an error. An input scan is never replaced.
    progress
        Called as the work proceeds.

    Raises
    ------
    DataError
        The input is missing or holds no scans, or it is a dataset that declares other channels than the model's.
    OutputError
        A result exists or cannot be written.
    ConfigError
        The forms contradict each other, or do not fit the input.
    """
    dataset, problems = scan_dataset(input_path, predictor.terms.dicom, labelled=False)
    dataset, warnings = _with_channels(dataset, predictor, problems)
    # What a dataset declares about its label maps does not matter here.
    errors = [problem for problem in problems if problem.severity == "error" and problem.path.name != "dataset.json"]
    failures = [DataError(problem.path, problem.text) for problem in errors]
    if dataset.series or dataset.layout == "files":
        warnings += tuple(str(problem) for problem in problems if problem.severity == "warning")
    targets = targets_of(dataset.cases, input_path, output_path, forms)
    check_targets(targets, dataset.cases, overwrite)
    done: list[CaseFiles] = []
    for index, (case, files) in enumerate(zip(dataset.cases, targets, strict=True)):
        try:
            with errors_of(case.images[0]):
                part = part_of(progress, case.name, index, len(dataset.cases))
                doubts = predict_case(predictor, case, files, forms, part)
        except DataError as error:
            failures.append(error)
        else:
            done.append(files)
            warnings += tuple(f"{case.images[0]}: {doubt}" for doubt in doubts)
    return PredictionReport(tuple(done), tuple(failures), warnings)


def _with_channels(data: Dataset, predictor: Predictor, problems: list[Problem]) -> tuple[Dataset, tuple[str, ...]]:
    """Return the dataset as it must be read for the model, and doubts about the channels that it declares."""
    if data.scans is None and not (data.has_labels and (data.root / "dataset.json").exists()):
        return data.read_as(Reading(predictor.terms.ranges)), ()
    terms = replace(predictor.terms, patient_rule=None)
    dataset, differences = compare(data, Wanted(channels=predictor.plan.channels), terms)
    for item in differences:
        if item.severity == "error" and item.case is None:
            raise DataError(item.path, item.text)
    problems += [item for item in differences if item.case is not None]
    return dataset, tuple(str(item) for item in differences if item.severity == "warning")


def predict_case(
    predictor: Predictor, case: Case, files: CaseFiles, forms: ResultForms, progress: CountProgress
) -> tuple[str, ...]:
    """Label a scan, write its files, and return doubts about these.

    Parameters
    ----------
    predictor
        The model.
    case
        The scan.
    files
        What to write; their folder exists.
    forms
        Kind of a DICOM-SEG.
    progress
        Called with windows done and windows in all.

    Raises
    ------
    DataError
        The scan cannot be used, or no DICOM object can refer to it.
    OutputError
        A file cannot be written.
    """
    progress(0, 1)
    write = None
    doubts: tuple[str, ...] = ()
    if files.segmentation is not None and case.series is not None:
        # Late: few scans need it, and it imports much.
        from client.inference.dicom.source import read_source
        from client.inference.dicom.write import write_dicom

        source = read_source(case.series)
        doubts = source.doubts
        write = partial(write_dicom, source, model=predictor.applied, kind=forms.segmentation, files=files)
    volume, _ = predictor.load(replace(case, label=None))
    if files.probabilities is None and (files.segmentation is None or forms.segmentation != "fractional"):
        prediction = Prediction(predictor.predict(volume, files.folder, progress))
    else:
        prediction = Prediction(*predictor.predict_probabilities(volume, files.folder, progress))
    if files.probabilities is not None and prediction.probabilities is not None:
        write_probabilities(files.probabilities, prediction.probabilities, volume.source)
    if write is not None:
        write(prediction)
    if files.label is not None:
        write_label(files.label, prediction.label, volume.source)
    return doubts


def part_of(progress: FractionProgress | None, name: str, index: int, cases: int) -> CountProgress:
    """Convert the window progress of one case to the fraction of the whole job."""

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress((index + done / total) / cases, name)

    return report
