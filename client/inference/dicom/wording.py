"""Codes and words of results, as short as DICOM wants them."""

from __future__ import annotations

from colorsys import hsv_to_rgb

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.color import CIELabColor
from highdicom.sr.coding import CodedConcept
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from client.inference.applied_model import AppliedModel

NOT_CLINICAL = "NOT FOR CLINICAL USE"
MANUFACTURER = "Fedvox"
PRIVATE_SCHEME = "99FEDVOX"
"""Coding scheme of labels without a code: their names are its codes."""

_GOLDEN_RATIO = 0.6180339887
"""Steps of this part of a circle leave the largest gaps between hues."""
_ABNORMAL = codes.SCT.MorphologicallyAbnormalStructure
_LISTED = (
    (codes.SCT.AnatomicalStructure, codes.cid7192),
    (codes.SCT.Tissue, codes.cid7191),
    (codes.SCT.SpatialAndRelationalConcept, codes.cid7196),
    (_ABNORMAL, codes.cid7194),
    (codes.SCT.PhysicalObject, codes.cid7193),
    (codes.SCT.BodySubstance, codes.cid7197),
    (codes.SCT.Substance, codes.cid7198),
    (codes.SCT.Function, codes.cid7195),
)
"""Categories and the context groups of their codes; where a code is in several, the first counts."""
_MORE_ABNORMAL = (
    Code("55641003", "SCT", "Infarct"),
    *(codes.SCT.MalignantNeoplasmPrimary, codes.SCT.Metastasis, codes.SCT.Carcinoma, codes.SCT.RenalCellCarcinoma),
    *(codes.SCT.Hematoma, codes.SCT.IntracranialHemorrhage, codes.SCT.Aneurysm, codes.SCT.Thrombus),
    *(codes.SCT.PathologicCalcification, codes.SCT.Fibrosis, codes.SCT.ThyroidNodule, codes.SCT.GrossTumorVolume),
)
"""Usual structures that the standard's groups lack."""

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
    names = {one: name.replace("\\", "/").strip() for one, name in model.plan.labels.items()}
    name = names[label]
    # A backslash separates values, so that two names may become one.
    value = name if list(names.values()).count(name) == 1 else f"{name} ({label})"
    return CodedConcept(value, PRIVATE_SCHEME, short(name))


def category_of(concept: CodedConcept) -> CodedConcept:
    """Return the category under which the standard lists the code of a structure; anatomical if it lists it nowhere."""
    code = Code(concept.value, concept.scheme_designator, concept.meaning)
    for category, listed in _LISTED:
        if code in listed.concepts.values() or (category == _ABNORMAL and code in _MORE_ABNORMAL):
            return CodedConcept.from_code(category)
    return CodedConcept.from_code(codes.SCT.AnatomicalStructure)


def coding_schemes(model: AppliedModel) -> list[CodingSchemeIdentificationItem]:
    """Describe the private coding schemes of labels: Fedvox's own, and those of a federation."""
    plan = model.plan
    private = sorted({code.scheme for code in plan.label_codes.values() if code.scheme.startswith("99")})
    found = [
        CodingSchemeIdentificationItem(scheme, name=short(f"Private scheme in labels of {model.name}"))
        for scheme in private
        if scheme != PRIVATE_SCHEME
    ]
    if PRIVATE_SCHEME in private or not set(plan.labels) <= set(plan.label_codes):
        name = "Names of labels in a Fedvox federation"
        found.append(CodingSchemeIdentificationItem(PRIVATE_SCHEME, name=name, responsible_organization=MANUFACTURER))
    return found


def colour_of(label: int) -> CIELabColor:
    """Return the colour in which viewers should draw a label: neighbours differ, and each label always has its own."""
    hue = (label - 1) * _GOLDEN_RATIO % 1
    strength = (1.0, 0.6, 0.8)[(label - 1) // 8 % 3]
    red, green, blue = hsv_to_rgb(hue, strength, 0.95)
    return CIELabColor.from_rgb(255 * red, 255 * green, 255 * blue)
