"""Sending files to other application entities (C-STORE)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pydicom

from client.pacs.peer import (
    MOST_CONTEXTS,
    SUCCESS,
    WARNING,
    Peer,
    associated,
    contexts_for,
    require_answer,
    status_text,
)
from common.imaging.io.dicom.header import refused_as_damaged


def send_files(peer: Peer, paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Send files to a peer (C-STORE), as they are stored.

    Parameters
    ----------
    peer
        Whom to send them to.
    paths
        DICOM files.

    Yields
    ------
    tuple[Path, str]
        A file that was answered, and the problem: empty if the peer has it now.

    Raises
    ------
    PeerError
        The peer cannot be reached, refuses the association, or ends it; files that were not yielded were not answered.
    DataError
        A file is missing or is not DICOM; nothing was sent.
    """
    kinds = {path: _kind(path) for path in paths}
    waiting = list(paths)
    while waiting:
        # The most frequent kinds first; what does not fit waits for another association.
        frequent = [kind for kind, _ in Counter(kinds[path] for path in waiting).most_common()][:MOST_CONTEXTS]
        now = [path for path in waiting if kinds[path] in frequent]
        waiting = [path for path in waiting if kinds[path] not in frequent]
        with associated(peer, contexts_for(frequent)) as (association, watch):
            for path in now:
                try:
                    status = association.send_c_store(path)
                except ValueError:
                    yield path, "the peer accepts no objects of this kind"
                    continue
                require_answer(peer, watch, status)
                taken = status.Status == SUCCESS or status.Status >> 12 == WARNING
                yield path, "" if taken else f"status {status_text(status)}"


def _kind(path: Path) -> tuple[str, str]:
    with refused_as_damaged(path):
        meta = pydicom.filereader.read_file_meta_info(path)
        return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
