"""Sending files to other application entities (C-STORE)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pydicom
from pynetdicom.association import Association

from client.pacs.peer import (
    MOST_CONTEXTS,
    SUCCESS,
    WARNING,
    NothingAcceptedError,
    Peer,
    associated,
    contexts_for,
    require_answer,
    status_text,
)
from client.pacs.watch import Watch
from common.errors import DataError
from common.imaging.io.dicom.header import refused_as_damaged

_NOT_OF_THIS_KIND = "the peer accepts no objects of this kind"


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
    """
    kinds = {}
    for path in paths:
        try:
            kinds[path] = _kind(path)
        except DataError as error:
            yield path, error.problem
    waiting = list(kinds)
    while waiting:
        # The most frequent kinds first; what does not fit waits for another association.
        frequent = [kind for kind, _ in Counter(kinds[path] for path in waiting).most_common()][:MOST_CONTEXTS]
        now = [path for path in waiting if kinds[path] in frequent]
        waiting = [path for path in waiting if kinds[path] not in frequent]
        try:
            with associated(peer, contexts_for(frequent)) as (association, watch):
                for path in now:
                    yield path, _stored(peer, association, watch, path)
        except NothingAcceptedError:
            yield from ((path, _NOT_OF_THIS_KIND) for path in now)


def _stored(peer: Peer, association: Association, watch: Watch, path: Path) -> str:
    """Send a file; return the problem, empty if the peer has it now."""
    try:
        with refused_as_damaged(path):
            dataset = pydicom.dcmread(path)
        status = association.send_c_store(dataset)
    except DataError as error:
        return error.problem
    except ValueError:  # not in this transfer syntax, or not encoded
        return _NOT_OF_THIS_KIND
    except AttributeError:
        return "is damaged: what is needed to send it is missing"
    require_answer(peer, watch, status)
    taken = status.Status == SUCCESS or status.Status >> 12 == WARNING
    return "" if taken else f"status {status_text(status)}"


def _kind(path: Path) -> tuple[str, str]:
    with refused_as_damaged(path):
        meta = pydicom.filereader.read_file_meta_info(path)
        return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
