"""Discrete noise: its distribution against exact arithmetic and statistics, its generator, and the grid."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from scipy.stats import chi2, chisquare, kstest, norm

from client.training import dp_noise
from client.training.dp_noise import DEVIATION, DiscreteGaussian, steps_of

KEY = bytes(range(32))
ALARM = 1e-6
"""Probability with which a statistical test here fails although the code is right."""


def test_noise_is_normal_and_never_the_same_twice() -> None:
    noise = DiscreteGaussian(KEY)
    first, second = noise.draw(200_001), noise.draw(200_001)
    for values in (first / DEVIATION, second / DEVIATION):
        low, high = (float(chi2.ppf(level, values.size)) for level in (ALARM / 2, 1 - ALARM / 2))
        assert low < float((values**2).sum()) < high
        assert kstest(values, "norm").pvalue > ALARM
    # Correlation of n independent pairs is normal with deviation 1 / sqrt(n).
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 5.2 / len(first) ** 0.5


def test_strips_come_up_as_often_as_they_should() -> None:
    """Strips are 1/12 of a deviation wide: an error in the table would show in single strips first."""
    values = np.abs(DiscreteGaussian(KEY).draw(1_000_000).astype(np.int64))
    edges = np.arange(61) << 22
    found = np.histogram(values, edges)[0]
    # A whole number stands for half a step on either side; zero for both signs at once.
    borders = np.where(edges > 0, edges - 0.5, 0.0) / DEVIATION
    expected = 2 * np.diff(norm.cdf(borders))
    share = found.sum() / expected.sum()
    assert chisquare(found, expected * share).pvalue > ALARM


def test_low_bits_are_uniform() -> None:
    """A float's last bits are what gave noise away; here each of the low 16 bits is a fair coin."""
    values = np.abs(DiscreteGaussian(KEY).draw(400_000))
    found = np.bincount(values & 0xFF, minlength=256)
    assert chisquare(found).pvalue > ALARM
    for bit in range(16):
        ones = int(((values >> bit) & 1).sum())
        assert abs(ones - values.size / 2) < 5.2 * values.size**0.5 / 2


def test_the_table_has_each_strip_exactly() -> None:
    units = [0] * 128
    for column, (own, other) in enumerate(zip(dp_noise._THRESHOLDS, dp_noise._ALIASES, strict=True)):
        units[column] += int(own)
        units[int(other)] += 2**57 - int(own)
    assert units == dp_noise._WEIGHTS
    assert sum(units) == 2**64
    assert (128 << 22) / DEVIATION > 10.7


def test_probabilities_are_right_to_the_stated_factor() -> None:
    """Candidates times limit, in the arithmetic of the code, against the exact density with 50 digits."""
    random = np.random.default_rng(0)
    with localcontext(prec=50):
        constant = None
        for strip in range(128):
            for inside in (0, 1, *(int(x) for x in random.integers(2**22, size=6)), 2**22 - 1):
                size = (strip << 22) | inside
                beyond = np.array([inside], np.uint32) * (1 / DEVIATION)
                limit = np.exp(beyond * (dp_noise._TWICE_STARTS[strip] + beyond) * -0.5) * dp_noise._LIMITS[strip]
                # Words 0 ... below the limit are accepted.
                accepted = int(np.ceil(limit[0]))
                assert 0 < accepted <= 2**53
                exact = (-((Decimal(size) / DEVIATION) ** 2) / 2).exp()
                ratio = Decimal(accepted) * dp_noise._WEIGHTS[strip] / exact
                constant = constant or ratio
                bound = Decimal(2) ** (-48 if size < 8.5 * DEVIATION else -29)
                assert abs(ratio / constant - 1) < bound, (strip, inside)


def test_zero_is_as_likely_as_one() -> None:
    """Zero comes from one sign only."""

    class Words:
        def __init__(self, place: int) -> None:
            words = np.zeros(2 * 64, "<u8")
            self.content = words.tobytes() + np.full(64, place, "<u4").tobytes()

        def read(self, size: int) -> bytes:
            assert size == len(self.content)
            return self.content

    assert dp_noise._candidates(Words(0), 64).tolist() == [0] * 64  # type: ignore[arg-type]
    assert dp_noise._candidates(Words(1 << 31), 64).size == 0  # type: ignore[arg-type]
    assert dp_noise._candidates(Words((1 << 31) | 5), 64).tolist() == [-5] * 64  # type: ignore[arg-type]


def test_words_are_the_key_stream_of_aes() -> None:
    noise = DiscreteGaussian(KEY)
    nonce = (3).to_bytes(8, "big") + (5).to_bytes(4, "big") + bytes(4)
    expected = Cipher(AES256(KEY), CTR(nonce)).encryptor().update(bytes(100))
    stream = noise._words(3, 5)
    assert stream.read(60) + stream.read(40) == expected


def test_a_key_decides_the_noise_with_all_its_bits() -> None:
    base = DiscreteGaussian(bytes(32)).draw(8)
    np.testing.assert_array_equal(base, DiscreteGaussian(bytes(32)).draw(8))
    for bit in range(256):
        assert (base != DiscreteGaussian((1 << bit).to_bytes(32, "big")).draw(8)).any()


@pytest.mark.parametrize("size", [0, 1, 2**15 - 1, 2**15, 2**15 + 1, 100_000])
def test_blocks_are_drawn_in_any_order_and_number(size: int) -> None:
    values = DiscreteGaussian(KEY).draw(size)
    assert values.shape == (size,)
    # A whole block does not depend on those beside it, nor on which thread was first.
    blocks = size // 2**15 * 2**15
    np.testing.assert_array_equal(values[:blocks], DiscreteGaussian(KEY).draw(200_000)[:blocks])


@pytest.mark.parametrize("multiplier", [5e-9, 1e-12, 0.0, float("nan")])
def test_noise_too_weak_for_the_grid_is_refused(multiplier: float) -> None:
    with pytest.raises(ValueError, match="too weak"):
        steps_of(multiplier)
