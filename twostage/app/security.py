"""Security of the page: browsers load nothing from other servers, and this server fetches nothing."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # gradio compiles templates at run time
        "style-src 'self' 'unsafe-inline'",
        "connect-src 'self' data: blob:",  # recordings are read from a blob
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",  # other pages must not embed this one
    )
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
API = "/v1/"  # prefix of the paths for programs, whose responses are JSON
REMOTE = re.compile(r"\w+:/+")
FETCHES = "Nothing is fetched from elsewhere."
MOST = 1 << 20  # bytes: maximum size of requests that are not uploads


class SecurityMiddleware:
    """ASGI: makes browsers load nothing from other servers, and refuses requests for files on other servers."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        _, file, file_path = scope["path"].partition("file=")
        if file and REMOTE.match(file_path):
            return await refuse(scope, answer, 403, FETCHES)
        if scope["method"] == "POST" and _has_json(scope):
            body = await _body(receive)
            if body is None or _names_remote(body):
                return await refuse(scope, answer, 403, FETCHES)
            receive = _replayed(body, receive)
        return await self._app(scope, receive, answer)


def _has_json(scope: Message) -> bool:
    return any(name == b"content-type" and b"json" in value for name, value in scope["headers"])


async def _body(receive: Receive) -> bytes | None:
    """The body of a request; None if it is too long or incomplete."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or len(body) > MOST:
            return None
        if not message.get("more_body"):
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return ``body`` first, then all further messages."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _names_remote(body: bytes) -> bool:
    """Whether a request names a file on another server, which gradio would fetch."""
    try:
        nodes = [json.loads(body)]
    except ValueError:
        return False  # gradio refuses it
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if REMOTE.match(str(node.get("path", ""))):
                return True
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
    return False


def header(scope: Message, name: bytes) -> str:
    """The value of a request header; empty if there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


async def discard(receive: Receive, most: int, seconds: float) -> None:
    """Read and discard ``most`` bytes of a request, or what arrives before nothing does for ``seconds``.

    Clients read no response while they are sending, and lose it if the connection is closed meanwhile.
    """
    with suppress(TimeoutError):
        while most > 0:
            message = await asyncio.wait_for(receive(), seconds)
            most -= len(message.get("body", b""))
            if not message.get("more_body"):
                return


async def refuse(
    scope: Message,
    send: Send,
    status: int,
    text: str,
    *,
    kind: str = "text/plain; charset=utf-8",
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Respond to a request with ``text``, for programs as the "error" of a JSON object."""
    if scope["path"].startswith(API):
        text, kind = json.dumps({"error": text}), "application/json"
    all_headers = [(b"content-type", kind.encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": text.encode()})
