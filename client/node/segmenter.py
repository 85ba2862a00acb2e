"""The process that segments: loads the model once, then takes study after study until SIGTERM."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from pydantic import ValidationError
from pydicom.filereader import read_file_meta_info

from client.inference.predict import PredictOptions, Predictor, part_of, predict_case
from client.inference.results import CaseFiles, ResultForms
from client.node.config import Results, Segmenting
from client.node.folders import SEGMENTER_FILE, SEGMENTING_FILE, NodeFolders, read_note
from client.node.studies import SeriesOutcome, StudyQueue
from client.state_folder import write_json
from common.errors import RESTART_CANNOT_HELP, BundleError, ConfigError, DataError, FedvoxError, OutputError
from common.formatting import counted
from common.imaging.datasets.case import Case, Reading, errors_of
from common.imaging.datasets.comparison import SiteTerms
from common.imaging.io.dicom.find import Found, find_series
from common.imaging.io.dicom.slices import Series
from common.system.logs import log_to_stderr

log = logging.getLogger("fedvox.node")

_POLL_SECONDS = 0.5
_FULL_DISK_PAUSE_SECONDS = 30.0


def main(state: Path, model: Path) -> int:
    """Segment until SIGTERM; return an exit status only if the model or what the node tells cannot be used."""
    log_to_stderr(logging.INFO)
    folders = NodeFolders(state)
    try:
        told = _told(state / SEGMENTING_FILE)
        segmenter = Segmenter(told.results, Predictor.open(model, _options(told)))
        queue = StudyQueue(folders, segmenter, told.destinations)
        write_json(state / SEGMENTER_FILE, {"pid": os.getpid()})
        log.info("the model is ready")
        while True:
            _work(queue)
    except FedvoxError as error:
        log.error("%s", error)
        write_json(state / SEGMENTER_FILE, {"problem": str(error)})
        # A model is not repaired by another start.
        return RESTART_CANNOT_HELP if isinstance(error, BundleError) else error.exit_status


def _told(path: Path) -> Segmenting:
    try:
        return Segmenting.model_validate(read_note(path))
    except ValidationError:
        raise ConfigError(f"{path}: is damaged or of another version; start the node again") from None


def _work(queue: StudyQueue) -> None:
    try:
        if not queue.work():
            time.sleep(_POLL_SECONDS)
    except OutputError as error:
        log.error("%s; trying again in %.0f s", error, _FULL_DISK_PAUSE_SECONDS)
        time.sleep(_FULL_DISK_PAUSE_SECONDS)


def _options(told: Segmenting) -> PredictOptions:
    how, terms = told.inference, SiteTerms(ranges=told.geometry, dicom=told.dicom)
    return PredictOptions(how.overlap, how.mirror, how.device, how.precision, terms)


class Segmenter:
    """Segments the chosen series of a study.

    Parameters
    ----------
    results
        The forms of results.
    predictor
        The model, and the rules for series.
    """

    def __init__(self, results: Results, predictor: Predictor) -> None:
        self._predictor = predictor
        self._forms = ResultForms("dicom", results.segmentation, results.report)

    def __call__(self, instances: Path, results: Path) -> list[SeriesOutcome]:
        """See ``client.node.studies.Segment``."""
        found = find_series(instances, self._predictor.terms.dicom)
        if lost := _lost(instances, found):
            reason = f"{counted(lost, 'instance')} cannot be read any more; send the study again"
            return [SeriesOutcome("study", "refused", reason)]
        outcomes: list[SeriesOutcome] = []
        for series in found.series:
            try:
                outcomes.append(self._outcome(series, results))
            except DataError as error:
                outcomes.append(SeriesOutcome(series.title, "refused", error.problem))
        return outcomes

    def _outcome(self, series: Series, results: Path) -> SeriesOutcome:
        if series.left_out:
            return SeriesOutcome(series.title, "left out", series.refusal)
        if series.refusal:
            return SeriesOutcome(series.title, "refused", series.refusal)
        files = CaseFiles(
            segmentation=results / "segmentation", report=results / "report" if self._forms.report else None
        )
        case = Case(series.title, (series.folder,), None, reading=Reading(self._predictor.terms.ranges), series=series)
        with errors_of(series.folder):
            doubts = predict_case(self._predictor, case, files, self._forms, part_of(None, case.name, 0, 1))
        for doubt in doubts:
            log.warning("%s", doubt)
        for path in files.all:
            path.rename(results / f"{read_file_meta_info(path).MediaStorageSOPInstanceUID}.dcm")
        return SeriesOutcome(series.title, "segmented", "; ".join(doubts))


def _lost(instances: Path, found: Found) -> int:
    """Count the files that are not the instances they were when they came, of which nobody knows the series."""
    read = frozenset[str]().union(*(series.uids for series in found.series))
    return sum(path.stem not in read for path in instances.iterdir())
