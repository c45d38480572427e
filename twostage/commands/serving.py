"""Options that the serving commands share: address, access, models and limits."""

import logging
import os
import re
import secrets
from argparse import ArgumentParser, Namespace
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from twostage.commands.options import models_by_label
from twostage.utils.devices import DEVICE_HELP, DEVICES, available_devices, device_for
from twostage.utils.errors import ConfigError

if TYPE_CHECKING:
    from twostage.app.access import Access
    from twostage.app.limits import Limits

TOKEN = "TWOSTAGE_TOKEN"  # name of the environment variable
logger = logging.getLogger(__name__)
SHORTEST = 16  # minimum number of characters of a token


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=7860, help="port to serve on; 0 selects a free one (default: 7860)")
    add(
        "--token",
        help=f"token that requests must carry (default: the environment variable {TOKEN}; if other machines can "
        "connect, a token is generated and printed)",
    )
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="further host name that requests may use, as behind a proxy; repeatable",
    )
    add(
        "--model",
        metavar="[LABEL=]MODEL",
        nargs="+",
        action="append",
        help="a model to offer before the shipped ones, as `twostage evaluate` takes it; repeatable",
    )
    add(
        "--device",
        choices=DEVICES,
        default="auto",
        help=f"device that is selected at first; {DEVICE_HELP}",
    )
    add("--seconds", type=float, default=10.0, help="length of a window: bounds the memory (default: 10)")
    add("--max-mb", type=int, default=100, metavar="N", help="largest size of one upload (default: 100)")
    add(
        "--max-total-mb",
        type=int,
        default=4000,
        metavar="N",
        help="largest size of all uploads and results together (default: 4000)",
    )
    add(
        "--max-seconds",
        type=int,
        default=600,
        metavar="N",
        help="longest sound in one request, summed over channels (default: 600)",
    )
    add("--queue", type=int, default=20, metavar="N", help="requests that may wait; more are refused (default: 20)")
    add("--jobs", type=int, default=1, metavar="N", help="requests worked on at the same time (default: 1)")


def access_for(args: Namespace) -> "Access":
    """Access control, from --host, --allow-host and --token."""
    from twostage.app.access import Access, is_loopback

    token = args.token or os.environ.get(TOKEN, "")
    if token and not (len(token) >= SHORTEST and re.fullmatch(r"[\w.~-]+", token, re.ASCII)):
        raise ConfigError(f"--token: must have at least {SHORTEST} letters, digits or any of _ . ~ -")
    if not token and not is_loopback(args.host):
        token = secrets.token_urlsafe(24)
    return Access(args.host, tuple(args.allow_host), token)


def limits_for(args: Namespace) -> "Limits":
    from twostage.app.limits import Limits

    return Limits(
        mb=args.max_mb,
        seconds=args.max_seconds,
        files=getattr(args, "max_files", 1),
        queue=args.queue,
        jobs=args.jobs,
        keep=getattr(args, "keep", 3600),
        total_mb=args.max_total_mb,
    )


def offered(args: Namespace) -> dict[str, list[str]]:
    """Paths of models by label, the given ones first. Unusable models are reported before serving begins."""
    from twostage.inference.restore_options import Options
    from twostage.models.checkpoint import shipped
    from twostage.models.loading import load

    Options(args.seconds)
    named_models = models_by_label(args.model) if args.model else {}
    for paths in named_models.values():
        load(*paths)
    models = named_models | {name: [name] for name in shipped() if name not in named_models}
    if not models:
        raise ConfigError("no models are shipped with this installation: give one by --model")
    return models


def devices(chosen: str) -> list[str]:
    """The chosen device, then the other available ones."""
    first = device_for(chosen, "--device")
    return sorted(available_devices(), key=lambda name: name != first)


def serve(served: AbstractContextManager[str], host: str, what: str) -> int:
    """Print the address at which ``what`` is served, and wait for Ctrl-C."""
    from threading import Event

    from twostage.app.server import warning_for

    with served as url:
        if warning := warning_for(host):
            logger.warning("%s", warning)
        print(f"twostage: {what.format(url=url)} (Ctrl-C stops it and deletes all uploads)", flush=True)
        try:
            Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0
