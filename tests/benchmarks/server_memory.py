"""Peak memory of the server's app with 30 M parameters, for 2 and for 16 sites.

``python -m tests.benchmarks.server_memory`` runs two rounds and the final evaluation in a process of its own for each
number of sites. The grid is Flower's interface with nobody behind it: a reply is made when it is pulled, piece by
piece, so that what is measured is the server's own: model, one reply, aggregation, checkpoint. Last line:
``server_memory: MB_2_SITES MB_16_SITES``.
"""

from __future__ import annotations

import math
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from common.config import FederationConfig
from common.protocol import Result, SiteInfo, WeightLayout, pack_info, pack_result
from common.transport import WIRE_TYPES, Encoding, encode, pieces_of
from server.app import Patience, RoundLoop
from server.inline_grid import InlineGrid
from server.state import RunFolder, RunState, now

PARAMETERS, TENSORS = 30_000_000, 150
SITES = (2, 16)


class EmptyGrid(InlineGrid):
    """Makes every reply when it is pulled."""

    def __init__(self, sites: int, encoding: Encoding) -> None:
        super().__init__(ClientApp(), {node: {} for node in range(1, sites + 1)})
        self._encoding = encoding
        self._questions: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keeps what a reply needs, and forgets the weights."""
        identities = []
        for message in messages:
            identity = secrets.token_hex(16)
            kept = Message(RecordDict(), message.metadata.dst_node_id, message.metadata.message_type)
            kept.metadata.__dict__["_group_id"] = message.metadata.group_id
            self._questions[identity] = kept
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """One reply."""
        [identity] = message_ids
        question = self._questions.pop(identity)
        return [Message(self._reply(question), reply_to=question)]

    def _reply(self, question: Message) -> RecordDict:
        metadata = question.metadata
        site = f"site-{metadata.dst_node_id:02d}"
        if metadata.message_type.startswith(MessageType.QUERY):
            return pack_info(SiteInfo(site, 100, 20, "0", "0", "0", "0", "cpu", "float32"))
        train = metadata.message_type == MessageType.TRAIN
        result = Result(
            site=site,
            run="r1",
            round=int(metadata.group_id),
            examples=100,
            validation_examples=20,
            steps=int(train),
            train_loss=0.5 if train else math.nan,
            validation_loss=0.5,
            dice={1: 0.5},
            seconds=1.0,
            seconds_data=0.0,
            seconds_compute=0.5,
            seconds_evaluate=0.5,
        )
        records = pack_result(result, None)
        if train:
            records["update"] = self._update(metadata.dst_node_id)
        return records

    def _update(self, seed: int) -> ArrayRecord:
        random = np.random.default_rng(seed)
        arrays = {}
        for index, piece in enumerate(pieces_of(PARAMETERS, self._encoding)):
            values = random.standard_normal(piece.count, np.float32)
            data = encode(values, self._encoding)
            arrays[f"{index:05d}"] = Array(self._encoding, (piece.count,), WIRE_TYPES[self._encoding], data)
        return ArrayRecord(arrays)


def run(sites: int, encoding: Encoding, folder: RunFolder) -> None:
    """Two rounds and the final evaluation."""
    content: dict[str, Any] = {"name": "memory", "rounds": 2, "transport": {"upload": encoding}}
    config = FederationConfig.model_validate(content)
    layout = WeightLayout({f"layer_{index:03d}": (PARAMETERS // TENSORS,) for index in range(TENSORS)})
    folder.save_checkpoint(0, np.full(PARAMETERS, 0.5, np.float32), layout)
    folder.commit(RunState(run="r1", digest=config.digest(), started=now()))
    loop = RoundLoop(config, layout, {1}, sites, folder, _Nobody(), patience=Patience())
    loop.run(EmptyGrid(sites, encoding))


class _Nobody:
    """Sees nothing."""

    def round_started(self, round: int, phase: str) -> None: ...
    def site_done(self, round: int, site: str, line: object) -> None: ...
    def round_done(self, line: object) -> None: ...
    def message(self, text: str) -> None: ...


def measure(sites: int, encoding: Encoding) -> float:
    """Peak memory of a process that serves so many sites, in MB."""
    command = [sys.executable, "-m", "tests.benchmarks.server_memory", str(sites), encoding]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    megabytes = float(done.stdout.split()[-1])
    print(f"{encoding:>8} {sites:3d} sites: {megabytes:6.0f} MB, {time.perf_counter() - started:5.1f} s", flush=True)
    return megabytes


def main() -> None:
    """Measures both, and the lossy uploads for comparison."""
    print(f"{PARAMETERS / 1e6:.0f} M parameters, {4 * PARAMETERS / 1e6:.0f} MB")
    peaks = [measure(sites, "float32") for sites in SITES]
    for encoding in ("bfloat16", "int8"):
        measure(SITES[0], encoding)
    print(f"server_memory: {peaks[0]:.0f} {peaks[1]:.0f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as root:
            run(int(sys.argv[1]), sys.argv[2], RunFolder.create(Path(root) / "run"))  # type: ignore[arg-type]
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    else:
        main()
