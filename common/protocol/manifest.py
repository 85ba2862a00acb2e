"""What an answer of a site holds, for its audit log: every field, and its update by size and SHA-256."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def manifest_of(answer: str, update_bytes: int = 0) -> dict[str, Any]:
    """Describes an answer, as values that JSON can take.

    Parameters
    ----------
    answer
        a message of ``common.protocol.codec``, as it is sent.
    update_bytes
        size of the file that goes beside it; 0 if none does.

    Returns
    -------
    dict[str, Any]
        ``bytes`` (of both), ``fields`` (name -> value; a number that does not exist is None), ``update`` (SHA-256 of
        the file, None if there is none), ``update_bytes``, and ``sha256`` of the text. As the text names the file's
        SHA-256, whoever knows the one hash knows that nothing of either was changed.
    """
    text = answer.encode()
    fields = {name: value for name, value in json.loads(text).items() if name not in ("format", "kind")}
    return {
        "bytes": len(text) + update_bytes,
        "fields": fields,
        "update": fields.get("update"),
        "update_bytes": update_bytes,
        "sha256": hashlib.sha256(text).hexdigest(),
    }
