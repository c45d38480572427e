"""``twostage app``: a page in the browser to restore recordings and listen to them."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from twostage.commands.options import device_for, models_by_label

HELP = "serve a page: restore recordings in the browser, listen before and after, try a sensor, look at results"
EXAMPLE = """
twostage app --results scores/
twostage app --model mine=runs/restorer vocoder.safetensors --port 8000
twostage app --host 0.0.0.0 --max-seconds 120 --max-mb 20 --keep 600
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=7860, help="0 takes any that is free (default: 7860)")
    add(
        "--model",
        metavar="[LABEL=]MODEL",
        nargs="+",
        action="append",
        help="a model to offer before the shipped ones, as `twostage evaluate` takes it; repeatable",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="the one chosen at first")
    add("--results", type=Path, metavar="DIR", help="offer what evaluate and compare wrote in folders below this one")
    add("--seconds", type=float, default=10.0, help="length of a window: bounds the memory (default: 10)")
    add("--max-mb", type=int, default=100, metavar="N", help="size of an upload (default: 100)")
    add("--max-seconds", type=int, default=600, metavar="N", help="sound in a file, channels added up (default: 600)")
    add("--max-files", type=int, default=20, metavar="N", help="files restored at once (default: 20)")
    add("--queue", type=int, default=20, metavar="N", help="requests that may wait; more are refused (default: 20)")
    add("--jobs", type=int, default=1, metavar="N", help="requests worked on at the same time (default: 1)")
    add("--keep", type=int, default=3600, metavar="S", help="seconds until uploads and results go (default: 3600)")


def run(args: Namespace) -> int:
    from threading import Event

    from twostage.app.limits import Limits
    from twostage.app.results import Results
    from twostage.inference.restoration import Options
    from twostage.models.checkpoint import load
    from twostage.utils.errors import ConfigError

    try:
        from twostage.app.page import Address, serving
    except ImportError as error:
        raise ConfigError(f"the page needs gradio ({error}): pip install 'twostage[app]'") from None
    limits = Limits(args.max_mb, args.max_seconds, args.max_files, args.queue, args.jobs, args.keep)
    results = Results(args.results) if args.results else None
    seconds = Options(args.seconds).seconds
    given = models_by_label(args.model) if args.model else {}
    for paths in given.values():
        load(*paths)  # what cannot be used is said now, not to a visitor
    address, devices = Address(args.host, args.port), _devices(args.device)
    with serving(address, _offered(given), devices, limits, results=results, seconds=seconds) as url:
        print(f"twostage: {url} (Ctrl-C ends it and deletes what was given)", flush=True)
        try:
            Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


def _offered(given: dict[str, list[str]]) -> dict[str, list[str]]:
    from twostage.models.checkpoint import shipped
    from twostage.utils.errors import ConfigError

    offered = given | {name: [name] for name in shipped() if name not in given}
    if not offered:
        raise ConfigError("no models are shipped with this installation: give one by --model")
    return offered


def _devices(chosen: str) -> list[str]:
    """The chosen device, then the others that there are."""
    import torch

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return sorted(devices, key=lambda name: name != device_for(chosen))
