"""What a site's fingerprint shared before the kits were made, in plain words, and what followed from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.config.chosen import Chosen
from common.config.federation import FederationConfig

FINGERPRINT_MEANINGS: Mapping[str, str] = {
    "cases": "how many labelled cases there are",
    "channels": "how many channels each of them has",
    "minimum_cell": "fewest patients in a cell that is shown, as your site file says",
    "spacing_mm": "voxel sizes along x, y and z",
    "extent_mm": "edges of the volumes along x, y and z, without their empty margin",
    "labels_found": "of each structure, whether at least so many patients have it",
    "intensities_hu": "for CT whose window was open: intensities within the structures, from a sample of voxels",
}
"""Every field of ``SharedFingerprint``, and what it means."""
_HOW = (
    "Of voxel sizes, edges and intensities: how many values, their sum, the sum of their squares, and how many lie in "
    "each of the public cells of a histogram. Cells of too few patients were not shown. No number of a single case "
    "was in it."
)


def fingerprint_terms(chosen: Chosen | None, federation: FederationConfig) -> dict[str, Any] | None:
    """Return this part of the consent document as plain values; None if no fingerprint was asked for."""
    if chosen is None:
        return None
    return {
        "meaning": "Before this kit was made, each site shared the fingerprint of its data in a signed file "
        f"(fedvox-client fingerprint). It named the site, the federation, its channels and its labels, and when "
        f"it was made. {_HOW}",
        "fields": dict(FINGERPRINT_MEANINGS),
        "sites": list(chosen.sites),
        "chosen": list(chosen.in_words(federation)),
    }


def fingerprint_lines(terms: Mapping[str, Any]) -> list[str]:
    """Return the items of the section for people."""
    return [
        str(terms["meaning"]),
        f"It held: {'; '.join(terms['fields'].values())}.",
        f"From the fingerprints of {', '.join(terms['sites'])}, added up, follow for all sites: "
        f"{'; '.join(terms['chosen'])}.",
    ]
