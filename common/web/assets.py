"""Styles and scripts: read once, compared with the manifest, and served from memory by name alone."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Iterable
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MANIFEST = "manifest.json"
"""Files from other projects in a ``static`` folder: name -> package, version, licence, file of the licence, SHA-256."""
_KEPT_FOR_A_YEAR = "public, max-age=31536000, immutable"


class Assets:
    """The files of some ``static`` folders, by their names.

    Parameters
    ----------
    folders
        Later ones win.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        files = [file for folder in folders for file in sorted(folder.glob("*")) if file.is_file()]
        self._files = {file.name: file.read_bytes() for file in files if file.name != MANIFEST}

    def url(self, name: str) -> str:
        """Return the address of a file, which changes with its content."""
        return f"/static/{name}?{hashlib.sha256(self._files[name]).hexdigest()[:12]}"

    async def answer(self, request: Request) -> Response:
        """Answer a request for a file."""
        name = request.path_params["name"]
        if name not in self._files:
            raise HTTPException(404)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(self._files[name], media_type=kind, headers={"Cache-Control": _KEPT_FOR_A_YEAR})
