"""Decoding frames in another process, which a damaged stream may end instead of this one."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.imaging.io.dicom.decoding.child import FAILED, REPLY
from common.imaging.io.dicom.decoding.codestream import require_same_size
from common.imaging.io.dicom.slices import PixelForm, RefusedError

_MODULE = "common.imaging.io.dicom.decoding.child"
_TYPES = (b"|u1", b"|i1", b"<u2", b"<i2", b"<u4", b"<i4")
_LONGEST_NAME = 64

_idle: list[_Child] = []
"""At most one process that waits for the next series: starting one takes as long as decoding dozens of slices."""


class FrameDecoder:
    """Decodes one frame after another; see :func:`frame_decoder`."""

    def __init__(self) -> None:
        self._child: _Child | None = None

    def decode(self, frame: bytes, form: PixelForm) -> NDArray[Any]:
        """Decode a frame to stored values (rows, columns).

        Raises
        ------
        RefusedError
            The frame has another size than its header says, or is damaged.
        """
        require_same_size(frame, form)
        options = {
            "rows": form.rows,
            "columns": form.columns,
            "bits_allocated": form.bits_allocated,
            "bits_stored": form.bits_stored,
            "pixel_representation": int(form.is_signed),
        }
        head = json.dumps({"syntax": form.syntax, "options": options, "length": len(frame)}).encode()
        kind, content = self._ask(head + b"\n" + frame)
        if kind not in _TYPES:
            self._end()  # nobody knows what the damage did to it
            name = content[:_LONGEST_NAME].decode("ascii", "replace") if kind == FAILED else "no reply"
            raise RefusedError(f"is damaged: its pixel data cannot be read ({name}). Copy it again")
        values = np.frombuffer(content, dtype=kind.decode())
        if values.size != form.rows * form.columns:
            raise RefusedError("holds pixels of another size than its header says")
        return values.reshape(form.rows, form.columns)

    def _ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Return the reply; where a process that decoded other frames before dies, a new one is asked."""
        while True:
            child = self._child or (_idle.pop() if _idle else _Child())
            self._child = None  # until its reply is read
            try:
                reply = child.ask(request)
            except (OSError, EOFError):
                how = child.end()
                if child.asked > 1:
                    continue
                text = f"is damaged: its pixel data ended the decoder ({how}). Copy it again"
                raise RefusedError(text) from None
            self._child = child
            return reply

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def close(self) -> None:
        """Keep the process for the next series, or end it if one is kept already."""
        if self._child is not None and not _idle:
            _idle.append(self._child)
            self._child = None
        self._end()


@contextmanager
def frame_decoder() -> Iterator[FrameDecoder]:
    """Give a decoder for the frames of a series; its process is started when the first frame is decoded."""
    decoder = FrameDecoder()
    try:
        yield decoder
    finally:
        decoder.close()


class _Child:
    """The process."""

    def __init__(self) -> None:
        # Decoders use no threads: those of the libraries around them would only take memory.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # a signal from the terminal is none of its business
        )
        self.asked = 0

    def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Send a request and return the two parts of its reply; OSError or EOFError if the process ended."""
        requests, replies = self._process.stdin, self._process.stdout
        if requests is None or replies is None:
            raise EOFError
        self.asked += 1
        requests.write(request)
        requests.flush()
        head = replies.read(REPLY.size)
        if len(head) < REPLY.size:
            raise EOFError
        kind, length = REPLY.unpack(head)
        content = replies.read(length)
        if len(content) < length:
            raise EOFError
        return kind, content

    def end(self) -> str:
        """End the process, and say how it ended."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # a request that it never took
                    pipe.close()
        status = self._process.wait()
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _end_all() -> None:
    while _idle:
        _idle.pop().end()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_idle.clear)
