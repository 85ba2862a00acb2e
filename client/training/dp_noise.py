"""Gaussian noise for differential privacy, from a secret key or from the operating system's cryptographic generator."""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SUMMED = 4
"""Gaussians in every value of secure noise; four make the known attack on its last bits take 2**159 operations."""

_BLOCK = 65536


class Noise(Protocol):
    """A source of Gaussian noise; every call gives noise that was never given before."""

    def normal(self, size: int) -> Tensor:
        """``size`` standard normal values, float32, on the device of the source."""


class KeyedNoise:
    """Noise from a generator that starts at a secret key; the same key gives the same noise on the same device.

    On a CPU a generator with 256 bits of state from all 256 bits of the key (NumPy's SFC64). Torch's own takes 32 bits
    of a seed: a server that knows an update's other parts could try them all. On a GPU Torch's Philox generator, with
    64 bits of the key.

    The numbers are floats, whose last bits depend on the value that noise is added to (Mironov 2012); ``SecureNoise``
    covers that too.

    Parameters
    ----------
    key
        secret, at least 16 bytes.
    device
        where the noise is needed.
    """

    def __init__(self, key: bytes, device: torch.device) -> None:
        self._device = device
        self._random: np.random.Generator | None = None
        self._generator: torch.Generator | None = None
        if device.type == "cpu":
            self._random = np.random.Generator(np.random.SFC64(int.from_bytes(key, "big")))
        else:
            self._generator = torch.Generator(device).manual_seed(int.from_bytes(key[:8], "big") >> 1)

    def normal(self, size: int) -> Tensor:
        """``size`` standard normal values, float32."""
        if self._random is not None:
            return torch.from_numpy(self._random.standard_normal(size, dtype=np.float32))
        return torch.randn(size, generator=self._generator, device=self._device)


class SecureNoise:
    """Noise from the operating system's cryptographic generator, never the same twice.

    Every value is half the sum of four normal ones, against attacks that read from a float's last bits what the noise
    was added to (Holohan and Braghin 2021, "Secure random sampling in differential privacy"; Opacus' secure mode does
    the same). The normal ones come from uniform ones of 53 bits by the method of Box and Muller (1958). A million
    values take 0.23 s of a processor; those of ``KeyedNoise`` take 0.01 s.

    Parameters
    ----------
    device
        where the noise is needed; it is made on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def normal(self, size: int) -> Tensor:
        """``size`` standard normal values, float32."""
        values = np.empty(size, np.float32)
        # In blocks that stay in the processor's caches.
        for start in range(0, size, _BLOCK):
            count = min(_BLOCK, size - start)
            values[start : start + count] = _box_muller(SUMMED * count).reshape(SUMMED, count).sum(0) / SUMMED**0.5
        return torch.from_numpy(values).to(self._device)


def _box_muller(count: int) -> NDArray[np.float64]:
    pairs = (count + 1) // 2
    words = np.frombuffer(os.urandom(16 * pairs), np.uint64)
    # In (0, 1], so that its logarithm exists.
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53
    radius = np.sqrt(-2 * np.log(uniform[:pairs]))
    angle = 2 * np.pi * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
