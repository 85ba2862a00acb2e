"""Flat vectors as bytes: against torch's bfloat16, a slow int8, and the promise that nothing is lost for good."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import ProtocolError
from common.weights.encoding import (
    BLOCK,
    PIECE_BYTES,
    UNTHREADED,
    VALUES_PER_PIECE,
    WINDOW,
    Encoding,
    ErrorFeedback,
    decode,
    encode,
    encode_vector,
    encoded_bytes,
    pieces_of,
    read_window,
    squared_norm,
    vector_bytes,
    vector_of,
    windows_of,
)

ENCODINGS: list[Encoding] = ["float32", "bfloat16", "int8"]
any_float = st.floats(width=32)
usual_float = st.floats(-(2.0**100), 2.0**100, width=32)


def vectors(elements: st.SearchStrategy[float], longest: int = 300) -> st.SearchStrategy[np.ndarray]:
    return st.integers(1, longest).flatmap(lambda size: arrays(np.float32, size, elements=elements))


def round_trip(vector: np.ndarray, encoding: Encoding) -> np.ndarray:
    return vector_of(content_of(vector, encoding), vector.size, encoding)


def content_of(vector: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The bytes of the file that a vector becomes."""
    return np.concatenate([data for _, data in encode_vector(vector, encoding)])


@given(st.sampled_from(ENCODINGS), st.integers(0, 3), st.integers(-70, 70))
def test_pieces_cover_every_value_once_and_are_at_most_16_mib(encoding: Encoding, pieces: int, offset: int) -> None:
    size = max(1, pieces * VALUES_PER_PIECE[encoding] + offset)
    start = place = 0
    for piece in pieces_of(size, encoding):
        assert (piece.start, piece.offset) == (start, place)
        assert piece.size == encoded_bytes(piece.count, encoding) <= PIECE_BYTES
        start, place = start + piece.count, place + piece.size
    assert start == size


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(size=st.integers(1, 3 * WINDOW), seed=st.integers(0, 2**31))
def test_a_window_of_the_bytes_is_what_its_values_are_encoded_to(encoding: Encoding, size: int, seed: int) -> None:
    vector = np.random.default_rng(seed).standard_normal(size, np.float32)
    [(piece, data)] = encode_vector(vector, encoding)
    start = 0
    for where, stretches in windows_of(piece, encoding):
        read = b"".join(data[offset : offset + count].tobytes() for offset, count in stretches)
        assert (where.start, read) == (start, encode(vector[where], encoding).tobytes())
        start = where.stop
    assert start == size


LONG = {encoding: 2 * VALUES_PER_PIECE[encoding] + WINDOW + 77 for encoding in ENCODINGS}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_windows_read_one_by_one_are_the_whole_vector(encoding: Encoding) -> None:
    """Of three pieces, the last of which ends within a block and within a window."""
    size = LONG[encoding]
    vector = np.random.default_rng(5).standard_normal(size, np.float32)
    content = content_of(vector, encoding)
    content.flags.writeable = False
    assert content.size == vector_bytes(size, encoding)
    whole, start = vector_of(content, size, encoding), 0
    for piece in pieces_of(size, encoding):
        for where, stretches in windows_of(piece, encoding):
            assert where.start == start
            assert where.stop - where.start <= WINDOW
            found = read_window(content, stretches, where.stop - where.start, encoding)
            np.testing.assert_array_equal(found.view(np.uint32), whole[where].view(np.uint32))
            start = where.stop
    assert start == size
    if encoding == "float32":
        np.testing.assert_array_equal(whole, vector)


def test_a_whole_float32_vector_is_a_view_of_its_bytes() -> None:
    content = content_of(np.arange(5, dtype=np.float32), "float32")
    content.flags.writeable = False
    vector = vector_of(content, 5, "float32")
    assert np.shares_memory(vector, content)
    assert not vector.flags.writeable


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [99, 101, 0, 164])
def test_bytes_of_another_model_are_refused(encoding: Encoding, size: int) -> None:
    content = content_of(np.ones(100, np.float32), encoding)
    with pytest.raises(ProtocolError, match="expected"):
        vector_of(content, size, encoding)
    with pytest.raises(ProtocolError, match="expected"):
        vector_of(content[:-1], 100, encoding)


@pytest.mark.parametrize("scale", [-1.0, math.nan])
def test_a_window_with_a_scale_that_is_no_scale_is_refused(scale: float) -> None:
    size = WINDOW + BLOCK
    content = content_of(np.ones(size, np.float32), "int8")
    [piece] = pieces_of(size, "int8")
    first, second = windows_of(piece, "int8")
    content[second[1][0][0] :][:4] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    read_window(content, first[1], WINDOW, "int8")
    with pytest.raises(ProtocolError, match="scale"):
        read_window(content, second[1], BLOCK, "int8")
    with pytest.raises(ProtocolError, match="scale"):
        vector_of(content, size, "int8")


@given(vectors(any_float))
def test_float32_returns_bit_for_bit(vector: np.ndarray) -> None:
    np.testing.assert_array_equal(round_trip(vector, "float32").view(np.uint32), vector.view(np.uint32))


@given(vectors(any_float))
def test_bfloat16_is_what_torch_makes_of_it(vector: np.ndarray) -> None:
    expected = torch.from_numpy(vector).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(round_trip(vector, "bfloat16"), expected)


def slow_int8(vector: np.ndarray) -> np.ndarray:
    """Block by block and value by value, in Python's own numbers."""
    result = []
    for start in range(0, len(vector), BLOCK):
        block = [float(value) for value in vector[start : start + BLOCK]]
        scale = float(np.float32(max(map(abs, block))) / np.float32(127))
        result += [round(value / scale) * scale if scale >= 2.0**-126 else 0.0 for value in block]
    return np.array(result)


@given(vectors(st.integers(-10_000, 10_000).map(lambda value: value / 64)))
def test_int8_is_the_nearest_step_of_its_block(vector: np.ndarray) -> None:
    ours, slow = round_trip(vector, "int8"), slow_int8(vector)
    steps = np.repeat([np.abs(vector[i : i + BLOCK]).max() / 127 for i in range(0, vector.size, BLOCK)], BLOCK)
    # A value that lies just between two steps may go to either.
    assert (np.abs(ours - vector) <= steps[: vector.size] * 0.50001).all()
    assert (np.abs(slow - vector) <= steps[: vector.size] * 0.50001).all()
    assert np.mean(np.isclose(ours, slow, rtol=1e-5, atol=1e-30)) > 0.9


@given(vectors(usual_float))
def test_int8_errs_by_at_most_half_a_step(vector: np.ndarray) -> None:
    returned = round_trip(vector, "int8")
    for start in range(0, vector.size, BLOCK):
        block = vector[start : start + BLOCK].astype(np.float64)
        error = np.abs(returned[start : start + BLOCK] - block).max()
        assert error <= max(np.abs(block).max() / 254 * 1.0001, 127 * 2.0**-126)


def test_int8_of_a_block_by_hand() -> None:
    block = np.zeros(BLOCK, np.float32)
    block[:4] = [127.0, -127.0, 0.4, 0.6]
    data = encode(block, "int8")
    assert len(data) == 4 + BLOCK
    assert np.frombuffer(data[:4], "<f4") == [1.0]
    assert np.frombuffer(data[4:8], np.int8).tolist() == [127, -127, 0, 1]
    np.testing.assert_array_equal(round_trip(np.zeros(70, np.float32), "int8"), np.zeros(70))


def test_bytes_of_an_upload() -> None:
    size = 5_600_123
    whole = sum(piece.size for piece in pieces_of(size, "float32"))
    assert whole == 4 * size
    assert sum(piece.size for piece in pieces_of(size, "bfloat16")) == 2 * size
    assert sum(piece.size for piece in pieces_of(size, "int8")) <= 0.27 * whole


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_piece_of_another_length_is_refused(encoding: Encoding, change: int) -> None:
    data = encode(np.ones(100, np.float32), encoding)
    with pytest.raises(ProtocolError, match="bytes"):
        decode(data[:change] if change < 0 else np.append(data, np.uint8(0)), 100, encoding)


@pytest.mark.parametrize("scale", [-1.0, math.nan])
def test_a_scale_that_is_no_scale_is_refused(scale: float) -> None:
    data = encode(np.ones(BLOCK, np.float32), "int8")
    with pytest.raises(ProtocolError, match="scale"):
        decode(np.float32(scale).tobytes() + data[4:].tobytes(), BLOCK, "int8")


def test_an_infinite_scale_decodes_to_what_is_not_finite() -> None:
    data = encode(np.ones(BLOCK, np.float32), "int8")
    assert not np.isfinite(decode(np.float32(math.inf).tobytes() + data[4:].tobytes(), BLOCK, "int8")).any()


@given(st.sampled_from(ENCODINGS), st.integers(0, 2**31), st.integers(1, 6))
def test_what_was_sent_and_what_is_kept_add_up_to_what_was_meant(encoding: Encoding, seed: int, rounds: int) -> None:
    updates = np.random.default_rng(seed).normal(size=(rounds, 150)).astype(np.float32)
    feedback = ErrorFeedback()
    sent = np.zeros(150)
    for update in updates:
        sent += vector_of(np.concatenate([data for _, data in feedback.encode(update, encoding)]), 150, encoding)
    step = np.abs(updates).max() * rounds / 127
    assert np.abs(sent - updates.sum(axis=0, dtype=np.float64)).max() <= step


def test_feedback_brings_across_what_is_always_too_small_to_be_sent() -> None:
    """A value of a thousandth beside a one is rounded to zero by int8 each time; with feedback its sum arrives."""
    update = np.zeros(BLOCK, np.float32)
    update[:2] = [1.0, 0.001]
    feedback = ErrorFeedback()
    with_feedback = without = 0.0
    for _ in range(1000):
        with_feedback += decode(next(feedback.encode(update, "int8"))[1], BLOCK, "int8")[1]
        without += decode(encode(update, "int8"), BLOCK, "int8")[1]
    assert without == 0
    assert with_feedback == pytest.approx(1.0, abs=0.01)


def test_feedback_of_another_models_size_is_forgotten() -> None:
    feedback = ErrorFeedback()
    list(feedback.encode(np.linspace(0, 1, 70, dtype=np.float32), "int8"))
    vector = np.linspace(-1, 1, 90, dtype=np.float32)
    sent = np.concatenate([data for _, data in feedback.encode(vector, "int8")])
    np.testing.assert_array_equal(sent, content_of(vector, "int8"))


@given(vectors(usual_float))
def test_the_squared_norm_is_the_sum_of_squares(vector: np.ndarray) -> None:
    expected = math.fsum(float(value) ** 2 for value in vector)
    assert squared_norm(vector) == pytest.approx(expected, rel=1e-4, abs=0)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-20, 1e-15, 1e-3, 1.0, 1e15, 1e20, 1e37])
def test_the_squared_norm_of_values_of_any_size(size: float) -> None:
    vector = (size * np.random.default_rng(3).normal(size=3 * UNTHREADED + 5)).astype(np.float32)
    expected = math.fsum(float(value) ** 2 for value in vector)
    assert squared_norm(vector) == pytest.approx(expected, rel=1e-5, abs=0)


@pytest.mark.parametrize("place", [0, UNTHREADED - 1, UNTHREADED, 3 * UNTHREADED + 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_squared_norm_tells_of_every_value_that_is_not_finite(place: int, value: float) -> None:
    vector = np.ones(3 * UNTHREADED + 5, np.float32)
    assert squared_norm(vector) == vector.size
    vector[place] = value
    assert not math.isfinite(squared_norm(vector))
