"""A site's labelled cases, and which of them train and which score models."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from client.ledger.patient_identity import Patient, PatientsError, patients_to_split, sides, split_by_patient
from common.config.federation import FederationConfig
from common.errors import DataError, FedvoxError
from common.imaging.datasets.case import Case
from common.imaging.datasets.comparison import ANYTHING, OWN_TERMS, SiteTerms, Wanted, compare
from common.imaging.datasets.dataset import find_dataset
from common.imaging.datasets.patients_csv import PATIENTS_FILE
from common.protocol.messages import ErrorCode
from common.seeds import seed_of

log = logging.getLogger("fedvox.runner")


class SiteDataError(FedvoxError):
    """The site's data cannot be used; the server learns only the code."""

    code = ErrorCode.NO_DATA


def labelled_cases(data: Path, wanted: Wanted = ANYTHING, terms: SiteTerms = OWN_TERMS) -> dict[str, Case]:
    """Return the labelled cases of a dataset folder, by name, to be read as they are wanted.

    Raises
    ------
    DataError
        The folder cannot be used, or declares something else than what is wanted.
    """
    dataset, problems = compare(find_dataset(data, terms.dicom, bids=terms.bids), wanted, terms)
    for problem in problems:
        if problem.severity == "error":
            raise DataError(problem.path, problem.text)
        log.warning("%s: %s", problem.path, problem.text)
    return {case.name: case for case in dataset.cases if case.label is not None}


def split_site(
    config: FederationConfig,
    site: str,
    cases: Mapping[str, Case],
    validation: Sequence[str] | float,
    patients: Mapping[str, Patient] | None,
) -> tuple[list[str], list[str]]:
    """Split a site's cases into training and validation cases, each sorted.

    Parameters
    ----------
    config
        The federation.
    site
        Name of the site.
    cases
        All cases, by name.
    validation
        Names of the validation cases, or the share of patients to validate on.
    patients
        Patients by case name under differential privacy; None without it.

    Raises
    ------
    SiteDataError
        A side would be empty, a named case does not exist, or a patient would be on both sides.
    """
    owners = {name: case.owner for name, case in cases.items()}
    if not isinstance(validation, float):
        return split_by_names(owners, validation)
    try:
        if patients is None:
            return split_cases(owners, validation, seed_of(config.seed, site))
        return split_by_patient(patients, validation)
    except PatientsError as error:
        raise SiteDataError(str(error)) from None


def split_cases(owners: Mapping[str, str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Draw the validation patients, and split the cases accordingly.

    Parameters
    ----------
    owners
        Case name -> patient; their order does not matter.
    fraction
        Share of all patients to validate on, rounded down, but at least one patient and never all.
    seed
        Seed of the draw.

    Returns
    -------
    tuple[list[str], list[str]]
        Names to train on and names to validate on, each sorted.

    Raises
    ------
    PatientsError
        There are fewer than two patients.
    """
    patients = sorted(patients_to_split(owners))
    shuffled = [str(patient) for patient in np.random.default_rng(seed).permutation(patients)]
    return sides(owners, set(shuffled[: min(max(1, int(fraction * len(shuffled))), len(shuffled) - 1)]))


def split_by_names(owners: Mapping[str, str], validation: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the cases as the hospital's site file asks, each list sorted.

    Parameters
    ----------
    owners
        Case name -> patient.
    validation
        Names of the validation cases.

    Raises
    ------
    SiteDataError
        A named case does not exist, a patient would be on both sides, or no case would be left to train on.
    """
    if missing := sorted(set(validation) - set(owners)):
        raise SiteDataError(f"site.yaml: validation_cases: the data has no labelled case {missing[0]}")
    scored = {owners[name]: name for name in validation}
    train = sorted(set(owners) - set(validation))
    for name in train:
        if owners[name] in scored:
            raise SiteDataError(
                f"site.yaml: validation_cases: names {scored[owners[name]]} but not {name} of the same "
                f"patient ({PATIENTS_FILE}); name both or neither"
            )
    if not train:
        raise SiteDataError("site.yaml: validation_cases: names every case; leave at least one to train on")
    return train, sorted(validation)
