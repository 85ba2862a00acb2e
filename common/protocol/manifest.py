"""Manifest of a site's answer for its audit log: every field, and the update's size and SHA-256."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def manifest_of(answer: str, update_bytes: int = 0) -> dict[str, Any]:
    """Describe an answer in JSON values.

    Parameters
    ----------
    answer
        A message encoded by ``common.protocol.codec``, as it is sent.
    update_bytes
        Size of the update file that is sent with it; 0 if there is none.

    Returns
    -------
    dict[str, Any]
        ``bytes`` (message and file), ``fields`` (name -> value; NaN is None), ``update`` (SHA-256 of the file, None if
        there is none), ``update_bytes``, and ``sha256`` of the text. The text contains the file's SHA-256, so this one
        hash protects both.
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
