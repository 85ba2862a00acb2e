"""Forms: read with bounds, and only with the fields that were asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from http import HTTPStatus
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

from common.web.guard import MOST_BODY_BYTES

CSRF_FIELD = "csrf"
MOST_FIELDS = 20
BODY_SECONDS = 10.0
_FORM = "application/x-www-form-urlencoded"


async def read_form(request: Request, fields: Collection[str]) -> dict[str, str]:
    """Return the fields of a form; those that are missing are empty.

    Raises
    ------
    HTTPException
        It is too large or too slow, not a form, or has a field that is not among ``fields``, or one twice.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != _FORM:
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _read_body(request)
        pairs = parse_qsl(body.decode("ascii"), True, True, errors="strict", max_num_fields=MOST_FIELDS)
    except TimeoutError:
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT) from None
    except ValueError:
        raise HTTPException(HTTPStatus.BAD_REQUEST) from None
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names) or not set(names) <= set(fields):
        raise HTTPException(HTTPStatus.BAD_REQUEST)
    return dict.fromkeys(fields, "") | dict(pairs)


async def _read_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return body
