"""Reserves disk space before an upload arrives, and drops senders that stop sending."""

import asyncio
from contextlib import suppress

from twostage.app.limits import Limits
from twostage.app.security import App, Message, Receive, Send, header, refuse
from twostage.app.storage import Reservation, Storage, StorageFull

UPLOADS = ("/upload", "/v1/restore")  # end the paths that take files
FORM = 1 << 16  # bytes of a form beside its files
STILL = 30.0  # seconds without a byte


class Uploads:
    """ASGI: reserves the bytes of an upload, or answers that there are too many."""

    def __init__(self, app: App, storage: Storage, limits: Limits) -> None:
        self._app, self._storage, self._largest = app, storage, limits.mb << 20
        self._most = self._largest * limits.files + FORM

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].rstrip("/").endswith(UPLOADS):
            return await self._app(scope, receive, send)
        length = header(scope, b"content-length")
        if not length.isdigit():
            return await refuse(scope, send, 411, "An upload must say its length: send Content-Length.")
        if int(length) > self._most:
            await self._discard(receive)
            return await refuse(scope, send, 413, f"{int(length) / 1e6:.0f} MB are too many for one request.")
        try:
            with self._storage.reserve(int(length)) as promise:
                await self._app(scope, _counted(receive, promise), send)
        except StorageFull as error:
            await self._discard(receive)
            await refuse(scope, send, 507, str(error))

    async def _discard(self, receive: Receive) -> None:
        """Read what fits into an upload and keep nothing: who is still sending would not hear an answer."""
        left = self._largest
        with suppress(TimeoutError):
            while left > 0:
                message = await asyncio.wait_for(receive(), STILL)
                left -= len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def _counted(receive: Receive, promise: Reservation) -> Receive:
    complete = False

    async def hand_on() -> Message:
        nonlocal complete
        try:
            message = await asyncio.wait_for(receive(), None if complete else STILL)
        except TimeoutError:
            return {"type": "http.disconnect"}
        promise.arrived(len(message.get("body", b"")))
        complete = complete or not message.get("more_body")
        return message

    return hand_on
