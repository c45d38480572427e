"""Reserves disk space before an upload arrives, and disconnects senders that stall."""

import asyncio

from twostage.app.limits import Limits
from twostage.app.security import App, Message, Receive, Send, discard, header, refuse
from twostage.app.storage import Reservation, Storage, StorageFull

UPLOADS = ("/upload", "/v1/restore")  # suffixes of paths that accept files
FORM = 1 << 16  # bytes of a form in addition to its files
STILL = 30.0  # seconds without data


class Uploads:
    """ASGI: reserves the bytes of an upload, or refuses it."""

    def __init__(self, app: App, storage: Storage, limits: Limits) -> None:
        self._app, self._storage, self._largest = app, storage, limits.mb << 20
        self._max_request = self._largest * limits.files + FORM

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].rstrip("/").endswith(UPLOADS):
            return await self._app(scope, receive, send)
        length = header(scope, b"content-length")
        if not length.isdigit():
            text = "An upload must state its length: send Content-Length."
            return await self._refuse(scope, receive, send, 411, text)
        if int(length) > self._max_request:
            text = f"{int(length) / 1e6:.0f} MB are too many for one request."
            return await self._refuse(scope, receive, send, 413, text)
        try:
            with self._storage.reserve(int(length)) as reservation:
                await self._app(scope, _counted(receive, reservation), send)
        except StorageFull as error:
            await self._refuse(scope, receive, send, 507, str(error))

    async def _refuse(self, scope: Message, receive: Receive, send: Send, status: int, text: str) -> None:
        await discard(receive, self._largest, STILL)
        await refuse(scope, send, status, text)


def _counted(receive: Receive, reservation: Reservation) -> Receive:
    complete = False

    async def receive_counted() -> Message:
        nonlocal complete
        try:
            message = await asyncio.wait_for(receive(), None if complete else STILL)
        except TimeoutError:
            return {"type": "http.disconnect"}
        reservation.arrived(len(message.get("body", b"")))
        complete = complete or not message.get("more_body")
        return message

    return receive_counted
