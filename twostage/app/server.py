"""The server, the only module that imports starlette and uvicorn. `api` has the operations for programs."""

import asyncio
import base64
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from twostage import __version__
from twostage.app import api
from twostage.app.access import Access, Door, is_loopback
from twostage.app.limits import Limits, TooMuch
from twostage.app.openapi import document
from twostage.app.security import App, Message, Receive, SecurityMiddleware, Send
from twostage.app.service import Service, serving_from
from twostage.app.uploads import FORM, Uploads
from twostage.app.visitors import Listening, Visitors
from twostage.inference.failures import FAILURES
from twostage.inference.restoration import RestorationReport
from twostage.utils.errors import Cancelled, ConfigError, OutputError

T = TypeVar("T")
GLANCE = 0.3  # seconds between checks whether a client is still connected
CONNECTIONS = 512  # maximum number, of all visitors and programs together
STARTING = 30.0  # seconds: maximum time to start and to stop
CHUNK = 3 << 16  # bytes per chunk of base64, a multiple of three
JSON = "application/json"
LOST = 499  # status for the log only, because the client has disconnected

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """The address to serve at; ``port`` 0 selects a free port."""

    host: str = "127.0.0.1"
    port: int = 7860


def application(service: Service, access: Access, visitors: Visitors | None = None) -> Starlette:
    """The interface for programs, behind all security layers."""
    programs = Programs(service)
    routes = [
        Route("/v1/restore", programs.restore, methods=["POST"]),
        Route("/v1/models", programs.models),
        Route("/v1/health", programs.health),
        Route("/openapi.json", programs.openapi),
    ]
    middleware = [
        Middleware(Log),
        Middleware(SecurityMiddleware),
        Middleware(Door, access=access),
        Middleware(Uploads, storage=service.storage, limits=service.limits),
        Middleware(Listening, visitors=visitors or Visitors()),
    ]
    return Starlette(routes=routes, middleware=middleware)


@contextmanager
def serving(
    address: Address,
    models: Mapping[str, list[str]],
    devices: Sequence[str],
    limits: Limits | None = None,
    *,
    seconds: float = 10.0,
    access: Access | None = None,
) -> Iterator[str]:
    """Serve the interface for programs, without a page, and yield the address; at the end, uploads are deleted."""
    with serving_from(models, devices, limits or Limits(), seconds=seconds) as service:
        app = application(service, access or Access(address.host))
        with listening(app, address, service) as url:
            yield url


@contextmanager
def listening(app: Any, address: Address, service: Service) -> Iterator[str]:
    """Serve ``app`` and yield its address; the end of the block stops running work and waits. Raises OutputError."""
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listener = socket.create_server((address.host.strip("[]"), address.port), family=family)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise OutputError(f"{address.host}:{address.port}: cannot be served there ({reason})") from None
    config = uvicorn.Config(
        app,
        log_config=None,  # logging is configured by the program
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        _wait_until(lambda: server.started or not thread.is_alive())
        if not server.started:
            raise OutputError(f"{address.host}:{address.port}: the server did not start")
        yield _url(address.host, listener.getsockname()[1])
    finally:
        service.queue.close()
        server.should_exit = True
        thread.join(STARTING)
        listener.close()


def _wait_until(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STARTING
    while not is_done() and time.monotonic() < deadline:
        time.sleep(0.01)


def _url(host: str, port: int) -> str:
    """The URL of a server on ``host`` from this machine.

    >>> _url("0.0.0.0", 80), _url("::1", 81)
    ('http://127.0.0.1:80/', 'http://[::1]:81/')
    """
    reachable_host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    return f"http://[{reachable_host}]:{port}/" if ":" in reachable_host else f"http://{reachable_host}:{port}/"


def warning_for(host: str) -> str:
    """A warning about serving on ``host``; empty if only this machine can connect."""
    if is_loopback(host):
        return ""
    return (
        f"--host {host}: other machines with the token can send requests, by IP address or a name that --allow-host "
        "gives; token and sound are not encrypted"
    )


class Programs:
    """The endpoints for programs."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._threads = ThreadPoolExecutor(service.limits.queue + service.limits.jobs, "twostage-api")

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__, "waiting": self._service.queue.waiting})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(document(self._service))

    async def models(self, request: Request) -> Response:
        infos = await asyncio.get_running_loop().run_in_executor(self._threads, api.models, self._service)
        return JSONResponse({"models": infos})

    async def restore(self, request: Request) -> Response:
        folder = Path(mkdtemp(prefix="work-", dir=self._service.home))
        source = folder / api.file_name("")
        try:
            values = dict(request.query_params)
            name = values.pop("name", "")
            restore_request = api.restore_request(values, self._service)
            self._service.queue.check_space()
            source = await _received(request, name, folder, self._service.limits.mb << 20)
            self._service.queue.check_space()  # again, because the upload took time
            report = await self._in_thread(
                request, lambda cancel: api.restore(self._service, source, folder, restore_request, cancel)
            )
            return _answer(request, report, folder)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Cancelled | ClientDisconnect):
                logger.info("work was stopped: %s", error)
                return Response(status_code=LOST)
            if isinstance(error, HTTPException):  # an invalid form
                return JSONResponse({"error": error.detail}, error.status_code)
            if not isinstance(error, FAILURES):
                raise
            refusal = api.refusal(error, source)
            return JSONResponse({"error": refusal.text}, refusal.status, _retry(refusal.status))

    async def _in_thread(self, request: Request, work: Callable[[Callable[[], bool]], T]) -> T:
        """Run ``work`` in a thread; it is cancelled if the client disconnects or the server stops."""
        gone = threading.Event()

        async def watch() -> None:
            while not await request.is_disconnected():
                await asyncio.sleep(GLANCE)
            gone.set()

        watcher = asyncio.create_task(watch())
        working = asyncio.get_running_loop().run_in_executor(self._threads, work, gone.is_set)
        try:
            return await asyncio.shield(working)
        finally:
            watcher.cancel()
            gone.set()
            await asyncio.wait([working])  # before its folder is deleted


async def _received(request: Request, name: str, folder: Path, max_bytes: int) -> Path:
    """Save the file of a request in ``folder``. Raises TooMuch, and ConfigError for a form without a file."""
    kind = request.headers.get("content-type", "")
    if int(request.headers["content-length"]) > max_bytes + FORM:
        raise TooMuch(f"{int(request.headers['content-length']) / 1e6:.1f} MB are more than the limit")
    if kind.startswith("multipart/form-data"):
        async with request.form(max_files=1, max_fields=20) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(files) != 1:
                raise ConfigError("the form has no file: send one, as `curl -F file=@recording.wav` does")
            path = folder / api.file_name(name or files[0].filename or "", files[0].content_type or "")
            with path.open("wb") as target:
                await asyncio.get_running_loop().run_in_executor(None, shutil.copyfileobj, files[0].file, target)
            return path
    path = folder / api.file_name(name, kind)
    with path.open("wb") as target:
        async for chunk in request.stream():
            target.write(chunk)
    return api.named_by_content(path)


def _answer(request: Request, report: RestorationReport, folder: Path) -> Response:
    """The restored file or, for clients that accept JSON, report and sound; then ``folder`` is deleted."""
    path, values = Path(report.target), api.report_of(report)
    media_type = api.MEDIA_TYPES[path.suffix.lower().lstrip(".")]
    if JSON in request.headers.get("accept", ""):
        return Last(StreamingResponse(_json(values, media_type, path), media_type=JSON), folder)
    file_name = f"{path.stem}-restored{path.suffix}"
    headers = {"X-Twostage-Report": json.dumps(values)}
    return Last(FileResponse(path, media_type=media_type, filename=file_name, headers=headers), folder)


def _json(values: dict[str, Any], media_type: str, path: Path) -> Iterator[bytes]:
    """A JSON object chunk by chunk, because the sound may not fit into memory."""
    yield f'{{"report": {json.dumps(values)}, "media_type": {json.dumps(media_type)}, "audio": "'.encode()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            yield base64.b64encode(data)
    yield b'"}'


class Last(Response):
    """A response whose folder is deleted afterward, whether it was delivered or not."""

    def __init__(self, answer: Response, folder: Path) -> None:
        super().__init__()
        self._answer, self._folder = answer, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._answer(scope, receive, send)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _retry(status: int) -> dict[str, str]:
    return {"Retry-After": "5"} if status in (503, 507) else {}


class Log:
    """ASGI: logs requests and their senders, without the query, which may contain a token."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            client = (scope.get("client") or ("?",))[0]
            elapsed = time.monotonic() - started
            logger.info("%s %s %r %d in %.2f s", client, scope["method"], scope["path"], status, elapsed)
