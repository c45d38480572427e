"""Tracks connected visitors: the page keeps an event stream open until the visitor leaves."""

import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import parse_qs

from twostage.app.security import App, Message, Receive, Send
from twostage.utils.errors import Cancelled

EVENTS = "/queue/data"  # suffix of the path of the event stream
GRACE = 3.0  # seconds: the stream is opened a moment after the work that it reports on


class Visitors:
    """The sessions of the page with an open event stream."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def came(self, session: str) -> None:
        self._open[session] += 1

    def went(self, session: str) -> None:
        self._open[session] -= 1
        if self._open[session] <= 0:
            del self._open[session]

    def check(self, session: str | None) -> Callable[[], None]:
        """A function that work for ``session`` calls regularly; it raises Cancelled when the visitor has left."""
        absent_since: float | None = None

        def check() -> None:
            nonlocal absent_since
            if session is None or session in self._open:
                absent_since = None
                return
            absent_since = time.monotonic() if absent_since is None else absent_since
            if time.monotonic() - absent_since > GRACE:
                raise Cancelled("the visitor has left")

        return check


class Listening:
    """ASGI: records which event streams are open."""

    def __init__(self, app: App, visitors: Visitors) -> None:
        self._app, self._visitors = app, visitors

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(EVENTS):
            return await self._app(scope, receive, send)
        (session, *_) = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [""])
        self._visitors.came(session)
        try:
            await self._app(scope, receive, send)
        finally:
            self._visitors.went(session)
