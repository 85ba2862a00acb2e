"""A run as files that TensorBoard shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import OutputError
from server.run_store.folder import FEDERATION_FILE, RunFolder
from server.tracking.run_reader import RunReader
from server.tracking.values import metrics_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
FLUSH_SECONDS = 10_000
"""We flush after every round."""


class TensorboardLog:
    """Writes a run's metrics below its folder.

    Whoever begins writes the whole run again, and then removes what earlier ones left: a killed writer may have left a
    part of a record, and nothing is there twice.

    Parameters
    ----------
    run
        The run folder; it may not exist yet.
    """

    name = "tensorboard"

    def __init__(self, run: Path) -> None:
        self._run = run
        self._reader = RunReader(run)
        self._writer: SummaryWriter | None = None

    def send(self, ended: bool) -> None:
        """Write the rounds that are not there yet.

        Raises
        ------
        FedvoxError
            The files cannot be written, or the run folder is damaged.
        """
        del ended  # TensorBoard knows no end
        if self._reader.state() is None:
            return
        try:
            if self._writer is None:
                self._begin()
            else:
                self._write(self._writer)
        except Exception as error:
            self.close()
            if isinstance(error, OSError):
                raise OutputError(f"{self._run / FOLDER}: cannot be written: {error.strerror or error}") from None
            raise

    def close(self) -> None:
        """Close the file; the next call of ``send`` begins another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _begin(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # late: it imports all of PyTorch

        folder = self._run / FOLDER
        before = list(folder.glob("events.out.tfevents.*"))
        self._reader = RunReader(self._run)
        self._writer = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)
        text = (self._run / FEDERATION_FILE).read_text(encoding="utf-8")
        quoted = "".join(f"    {line}\n" for line in text.splitlines())
        self._writer.add_text("federation", quoted, 0, self._reader.started())
        self._write(self._writer)
        for file in before:
            file.unlink(missing_ok=True)

    def _write(self, writer: SummaryWriter) -> None:
        new = self._reader.new_rounds()
        if not new:
            return
        plan = RunFolder(self._run).plan()
        for committed in new:
            for metric in metrics_of(committed, plan):
                writer.add_scalar(metric.name, metric.value, metric.step, metric.time)
        writer.flush()
