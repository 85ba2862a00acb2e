"""Poisson sampling of the patients of a private step, and of their patches.

Every draw for a patient depends only on a secret key, the step and the patient's own name. Another patient's presence
changes nothing, as the analysis of Poisson sampling assumes.
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
"""Returns the secret key for one use of the patients' data, from the site's seed, the round and the use."""


def fresh_key(seed: int, round_number: int, use: str) -> bytes:
    """Return a new secret from the operating system, which no one, including the server, can predict."""
    del seed, round_number, use
    return secrets.token_bytes(KEY_BYTES)


def repeatable_key(seed: int, round_number: int, use: str) -> bytes:
    """Return the same key for the same arguments, so that simulations are repeatable; protects no one."""
    return hashlib.sha256(f"{seed}/{round_number}/{use}".encode()).digest()


def draw_patients(key: bytes, names: Sequence[str], sample_rate: float, step: int) -> list[int]:
    """Draw each patient with probability ``sample_rate``, independently of all others (Poisson sampling).

    The probability is exact to 2**-53: a patient takes part if the first 53 bits of a keyed hash (BLAKE2b), read as a
    fraction, are below ``sample_rate``.

    Parameters
    ----------
    key
        Secret key of the round.
    names
        Names of the patients, each once.
    sample_rate
        Between 0 and 1; at 1 all take part.
    step
        Number of the step, counted over the whole federation.

    Returns
    -------
    list[int]
        Positions of the patients who take part, in order; may be empty.
    """
    return [
        position
        for position, name in enumerate(names)
        if (_keyed(key, "draw", step, name)[0] >> 11) * 2.0**-53 < sample_rate
    ]


def scans_by_patient(cases: Sequence[CachedCase]) -> dict[str, list[CachedCase]]:
    """Group the scans by patient, in the order in which patients first appear in ``cases``."""
    found: dict[str, list[CachedCase]] = {}
    for case in cases:
        found.setdefault(case.owner, []).append(case)
    return found


class PatientSampler:
    """The patches of the drawn patients: batch ``i`` holds those of draw ``i``, counted over all steps.

    On average over draws, a fixed share of a patient's patches is centred on foreground. If a patient has several
    scans, each patch comes from a random one: more scans do not increase their weight.

    Parameters
    ----------
    cases
        The site's training cases.
    draws
        For each draw, the step and the position among the patients of ``scans_by_patient``.
    cutter
        Cuts and augments patches.
    patches_per_patient
        Patches per batch.
    foreground_fraction
        Share of the patches that are centred on foreground.
    key
        Secret key of the round.
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
        """Return the patches of the patient at position ``step`` of the draws."""
        at, position = self._draws[step]
        patient, scans = self._patients[position]
        random = np.random.default_rng(_keyed(self._key, "patches", at, patient))
        offset = random.random()
        images, labels, names = [], [], []
        for number in range(self._patches_per_patient):
            # Spread evenly over the patient's patches; a random offset spreads it over draws.
            before, after = (math.floor(offset + count * self._foreground_fraction) for count in (number, number + 1))
            case = scans[0] if len(scans) == 1 else scans[int(random.integers(len(scans)))]
            image, label = self._cutter.patch(case, after > before, random)
            images.append(image)
            labels.append(label)
            names.append(case.name)
        return Batch(torch.stack(images), torch.stack(labels), tuple(names))


def _keyed(key: bytes, use: str, step: int, name: str) -> list[int]:
    """Return two 64-bit words that cannot be predicted without the key."""
    digest = hashlib.blake2b(f"{use}/{step}/{name}".encode(), digest_size=16, key=key).digest()
    return [int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")]
