"""Which patients take part in a private step, and which of their patches are seen.

Everything that is drawn for a patient depends on a secret key, the step and the patient's own name, on nothing else:
whether another patient is there changes neither the one nor the other, as the analysis of Poisson sampling assumes.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Sequence

import numpy as np
import torch

from common.imaging.cache.case_cache import CachedCase
from common.imaging.patches.sampler import Batch, PatchCutter

KEY_BYTES = 32
KeySource = Callable[[int, int, str], bytes]
"""The secret of a use of patients' data, from the site's seed, the round, and what the data are used for."""


def fresh_key(seed: int, round_number: int, use: str) -> bytes:
    """A new secret from the operating system at every call: nobody, the server least of all, can foresee it."""
    del seed, round_number, use
    return secrets.token_bytes(KEY_BYTES)


def repeatable_key(seed: int, round_number: int, use: str) -> bytes:
    """The same key for the same arguments, so that simulations repeat exactly; it protects nobody."""
    return hashlib.sha256(f"{seed}/{round_number}/{use}".encode()).digest()


def draw_patients(key: bytes, names: Sequence[str], sample_rate: float, step: int) -> list[int]:
    """Poisson sampling: every patient takes part with probability ``sample_rate``, independently of all others.

    The probability is exact to 2**-53: a patient takes part if the first 53 bits of a keyed hash (BLAKE2b), read as a
    fraction, lie below it.

    Parameters
    ----------
    key
        secret of the round.
    names
        of the patients, each once.
    sample_rate
        between 0 and 1; at 1 all take part.
    step
        counted over the whole federation.

    Returns
    -------
    list[int]
        Positions of those who take part, in order; may be empty.
    """
    return [
        position
        for position, name in enumerate(names)
        if (_keyed(key, "draw", step, name)[0] >> 11) * 2.0**-53 < sample_rate
    ]


def scans_by_patient(cases: Sequence[CachedCase]) -> dict[str, list[CachedCase]]:
    """Every patient's scans, by patient, in the order in which they first stand in ``cases``."""
    found: dict[str, list[CachedCase]] = {}
    for case in cases:
        found.setdefault(case.owner, []).append(case)
    return found


class PatientSampler:
    """The patches of the patients who were drawn: batch ``i`` holds those of the ``i``-th, over all steps.

    A fixed share of a patient's patches, in the mean over draws, is centred on foreground. Of several scans of a
    patient each patch comes from one drawn at random: more scans make him no heavier.

    Parameters
    ----------
    cases
        the site's training cases.
    draws
        for each patient drawn, the step and the position among the patients of ``scans_by_patient``.
    cutter
        cuts and augments.
    patches_per_patient
        patches per batch.
    foreground_fraction
        share of the patches that are centred on foreground.
    key
        secret of the round.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        draws: Sequence[tuple[int, int]],
        cutter: PatchCutter,
        patches_per_patient: int,
        foreground_fraction: float,
        key: bytes,
    ) -> None:
        self._patients = tuple(scans_by_patient(cases).items())
        self._draws = tuple(draws)
        self._cutter = cutter
        self._patches_per_patient = patches_per_patient
        self._foreground_fraction = foreground_fraction
        self._key = key

    def batch(self, step: int) -> Batch:
        """The patches of the patient drawn at position ``step`` of the draws."""
        at, position = self._draws[step]
        patient, scans = self._patients[position]
        random = np.random.default_rng(_keyed(self._key, "patches", at, patient))
        offset = random.random()
        images, labels, names = [], [], []
        for number in range(self._patches_per_patient):
            # Spread evenly over the patient's own patches, and over patients by a random offset.
            before, after = (math.floor(offset + count * self._foreground_fraction) for count in (number, number + 1))
            case = scans[0] if len(scans) == 1 else scans[int(random.integers(len(scans)))]
            image, label = self._cutter.patch(case, after > before, random)
            images.append(image)
            labels.append(label)
            names.append(case.name)
        return Batch(torch.stack(images), torch.stack(labels), tuple(names))


def _keyed(key: bytes, use: str, step: int, name: str) -> list[int]:
    """Two words of 64 bits that nobody can foresee who does not know the key."""
    digest = hashlib.blake2b(f"{use}/{step}/{name}".encode(), digest_size=16, key=key).digest()
    return [int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")]
