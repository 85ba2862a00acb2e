"""Exactly what a message holds, for the audit logs of both sides.

A site writes the manifest of what it sends, and the server the hash of what it counts; equal hashes mean that the
same bytes left here and arrived there.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from flwr.app import ArrayRecord, RecordDict

from common.parts import name_of


def manifest_of(records: RecordDict) -> dict[str, Any]:
    """What ``records`` hold, as values that JSON can take.

    Returns:
        ``bytes`` (tensors and fields as they are sent, without the transport's own framing), ``tensor_bytes``,
        ``tensors`` (name, dtype, shape, bytes of each piece), ``fields`` (record -> name -> value; a number that is
        not finite is None) and ``sha256`` over the names and contents of all of them, of tensors over their names in
        Flower, which are hashes of form and content.
    """
    total = hashlib.sha256()
    tensors: list[dict[str, Any]] = []
    fields: dict[str, dict[str, Any]] = {}
    tensor_bytes = field_bytes = 0
    for record_name, record in sorted(records.items()):
        if isinstance(record, ArrayRecord):
            for name, array in sorted(record.items()):
                size = len(array.data)
                _add(total, [record_name, name, name_of(array)])
                entry = {"name": f"{record_name}/{name}", "dtype": array.dtype, "shape": list(array.shape)}
                tensors.append(entry | {"bytes": size})
                tensor_bytes += size
        else:
            values = dict(sorted(record.items()))
            _add(total, [record_name, values])
            fields[record_name] = {name: _plain(value) for name, value in values.items()}
            field_bytes += len(record.deflate())
    return {
        "bytes": tensor_bytes + field_bytes,
        "tensor_bytes": tensor_bytes,
        "tensors": tensors,
        "fields": fields,
        "sha256": total.hexdigest(),
    }


def _add(total: Any, values: list[Any]) -> None:
    text = json.dumps(values, separators=(",", ":"), default=bytes.hex).encode()
    total.update(len(text).to_bytes(8, "little"))
    total.update(text)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value
