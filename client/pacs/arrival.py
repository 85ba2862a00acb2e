"""From files as they came to a folder of the dataset: de-identified, and named after nothing that identifies."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pydicom

from client.deidentify.choices import Choices, InstanceRefusedError, Reason
from client.deidentify.identities import Identities
from client.deidentify.instance import Deidentifier
from common.errors import DataError
from common.formatting import counted
from common.imaging.io.dicom.header import refused_as_damaged
from common.imaging.io.dicom.values import text

_HOPELESS = frozenset({Reason.DAMAGED, Reason.IDENTIFIERS})
"""Wrong in the archive: a study with such an instance is not taken. Of other series, the study is what remains."""
_DIGITS = 12


class StudyRefusedError(Exception):
    """A study that was fetched must not become part of the dataset.

    Attributes
    ----------
    reason
        Why.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Arrivals:
    """Names folders of studies, and fills them.

    Parameters
    ----------
    identities
        The hospital's secret.
    choices
        How to de-identify; None for not at all.
    """

    def __init__(self, identities: Identities, choices: Choices | None) -> None:
        self._identities = identities
        self._how = "off" if choices is None else json.dumps([choices.dates, choices.device, sorted(choices.allowed)])
        self._deidentifier = None if choices is None else Deidentifier(identities, choices)

    def prefix_of(self, study: str) -> str:
        """Return how all folders of a study begin."""
        return f"study-{_short([self._identities.uid(study)])}-"

    def folder_of(self, study: str, instances: Iterable[str]) -> str:
        """Return the folder of some instances of a study: another name for others, and for another way of taking them.

        Only the hospital's secret leads from a study to the name of its folder.
        """
        return self.prefix_of(study) + _short([self._how, *sorted(map(self._identities.uid, instances))])

    def take(self, files: Mapping[str, Sequence[Path]], folder: Path) -> list[str]:
        """De-identify files into an empty folder, or move them there if they stay as they are.

        Parameters
        ----------
        files
            Series UID -> its files.
        folder
            Where they go.

        Returns
        -------
        list[str]
            What was left out, and why: series of kinds that are not taken.

        Raises
        ------
        StudyRefusedError
            An instance is damaged, an identifier in it cannot be removed, or instances are of several patients.
        """
        left_out, number = [], 0
        patients: set[str] = set()
        for paths in files.values():
            targets = [folder / f"{number + index:06d}.dcm" for index in range(len(paths))]
            try:
                patients |= {self._take_one(path, target) for path, target in zip(paths, targets, strict=True)}
                number += len(paths)
            except InstanceRefusedError as error:
                if error.reason in _HOPELESS:
                    raise StudyRefusedError(f"an instance {error}") from None
                for target in targets:
                    target.unlink(missing_ok=True)
                left_out.append(f"left out a series of {counted(len(paths), 'instance')}, of which one {error}")
        if len(patients) > 1:
            raise StudyRefusedError(f"its instances are of {len(patients)} patients: correct PatientID in the archive")
        return left_out

    def _take_one(self, path: Path, target: Path) -> str:
        """Return whose instance it is: the pseudonym, or the PatientID of one that stays as it is."""
        if self._deidentifier is None:
            try:
                with refused_as_damaged(path):
                    patient = text(pydicom.dcmread(path, specific_tags=["PatientID"], force=True), "PatientID")
            except DataError as error:
                raise StudyRefusedError(f"an instance {error.problem}") from None
            shutil.move(path, target)
            return patient
        made = self._deidentifier.deidentify(path)
        made.write(target)
        return made.patient


def _short(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:_DIGITS]
