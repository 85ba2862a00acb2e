"""Codes and words of results, as short as DICOM wants them."""

from __future__ import annotations

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr.coding import CodedConcept
from pydicom.sr.codedict import codes

from client.inference.applied_model import AppliedModel

NOT_CLINICAL = "NOT FOR CLINICAL USE"
MANUFACTURER = "Fedvox"
PRIVATE_SCHEME = "99FEDVOX"
"""Coding scheme of labels without a code: their names are its codes."""

LONGEST = 64
"""Characters of a description or name (value representation LO)."""


def short(text: str) -> str:
    """Return a text that fits into one value of a description or name."""
    plain = text.replace("\\", "/").strip()
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 3]}..."


def series_description(what: str, model: AppliedModel) -> str:
    """Return a description that says what the series is, and that it is not for clinical use."""
    return short(f"{NOT_CLINICAL}: {what} by {model.name}")


def concept_of(model: AppliedModel, label: int) -> CodedConcept:
    """Return the code of a label; without one in the plan, its name as a code of Fedvox's own scheme."""
    if (code := model.plan.label_codes.get(label)) is not None:
        return CodedConcept(code.value, code.scheme, code.meaning)
    name = model.plan.labels[label].replace("\\", "/").strip()
    return CodedConcept(name, PRIVATE_SCHEME, short(name))


def category_of(concept: CodedConcept) -> CodedConcept:
    """Return the category of a structure: abnormal if the standard lists its code among lesions, else anatomical."""
    lesions = {getattr(codes.cid7159, name) for name in codes.cid7159.dir()}
    found = codes.SCT.MorphologicallyAbnormalStructure if concept in lesions else codes.SCT.AnatomicalStructure
    return CodedConcept.from_code(found)


def coding_schemes(model: AppliedModel) -> list[CodingSchemeIdentificationItem]:
    """Describe the coding scheme of Fedvox's own, if a label needs it."""
    if set(model.plan.labels) <= set(model.plan.label_codes):
        return []
    return [
        CodingSchemeIdentificationItem(
            PRIVATE_SCHEME, name="Names of labels in a Fedvox federation", responsible_organization=MANUFACTURER
        )
    ]
