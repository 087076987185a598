"""The demo as a web application: four routes, and what keeps strangers' requests bounded.

Requests must have a content type that no form of another site can send, and a host name that is this server's own: a
page elsewhere in the same browser cannot reach it. Bodies are counted while they arrive and refused beyond the limit.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pfcn_jax.apps.demo.session import DemoSession
from pfcn_jax.apps.demo.uploads import too_large
from pfcn_jax.errors import UserError

_MAX_JSON = 64 * 1024
_BODY_SECONDS = 60.0  # to send a body
_MAX_WAITING = 8  # requests that may wait for the device
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_FILES = {"/": ("demo.html", "text/html"), "/demo.js": ("demo.js", "text/javascript"),
          "/demo.css": ("demo.css", "text/css")}  # fmt: skip


class _Refused(UserError):
    """A request that is answered with another status than 400."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def make_app(session: DemoSession, *, allowed_hosts: Sequence[str]) -> Starlette:
    """The application.

    Args:
      allowed_hosts: names that requests may be addressed to; ("*",): any.
    """
    waiting = asyncio.Semaphore(1 + _MAX_WAITING)  # and the one that is computed

    async def compute(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        if waiting.locked():
            raise _Refused(503, "too many images at once: try again in a moment")
        async with waiting:
            return await run_in_threadpool(function, *arguments)

    async def info(request: Request) -> dict[str, Any]:
        return session.info()

    async def images(request: Request) -> dict[str, Any]:
        name = request.query_params.get("name", "image")
        message = too_large(name, session.limits)
        data = await _body(request, "application/octet-stream", session.limits.max_bytes, message)
        return await compute(session.add, data, name)

    async def segments(request: Request) -> dict[str, Any]:
        data = await _body(request, "application/json", _MAX_JSON, "the request is too long")
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UserError("the request is not JSON") from error
        if not isinstance(values, dict):
            raise UserError("the request must be an object with 'key' and 'thresholds'")
        return await compute(session.segment, values.get("key"), values.get("thresholds", {}))

    routes = [Route(path, _file(name, kind)) for path, (name, kind) in _FILES.items()]
    routes += [
        Route("/api/info", _answered(info)),
        Route("/api/images", _answered(images), methods=["POST"]),
        Route("/api/segments", _answered(segments), methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))])


async def _body(request: Request, kind: str, limit: int, message: str) -> bytes:
    """The body, if it has the content type and at most `limit` bytes; no more than that is ever held."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
        raise _Refused(415, f"the request must have the content type {kind}")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _Refused(413, message)
    data = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            data.extend(chunk)
            if len(data) > limit:
                raise _Refused(413, message)

    try:
        await asyncio.wait_for(read(), _BODY_SECONDS)
    except TimeoutError as error:
        raise _Refused(408, "the upload took too long") from error
    except ClientDisconnect as error:
        raise UserError("the upload was broken off") from error
    return bytes(data)


def _answered(handler: Callable[[Request], Awaitable[dict[str, Any]]]) -> Callable[[Request], Awaitable[Response]]:
    """Every answer is JSON: the result, or `error` with one sentence. The connection ends with a refusal, since the
    rest of its body is not read."""

    async def endpoint(request: Request) -> Response:
        headers = dict(_HEADERS)
        try:
            return JSONResponse(await handler(request), headers=headers)
        except UserError as error:
            status = error.status if isinstance(error, _Refused) else 400
            if status in (408, 413, 415):
                headers["Connection"] = "close"
            return JSONResponse({"error": str(error)}, status, headers)
        except Exception:  # whatever it was: the page gets an answer, the console the details
            traceback.print_exc(file=sys.stderr)
            return JSONResponse({"error": "something went wrong here; the console says what"}, 500, headers)

    return endpoint


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = importlib.resources.files("pfcn_jax.viz").joinpath("templates", name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return endpoint
