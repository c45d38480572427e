"""``twostage app``: a page in the browser to restore recordings and listen to them."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from twostage.commands import serving
from twostage.utils.errors import ConfigError

HELP = "serve a web interface: restore recordings, compare before and after, simulate a sensor, view results"
EXAMPLE = """
twostage app --results scores/
twostage app --model mine=runs/restorer vocoder.safetensors --port 8000
twostage app --host 0.0.0.0 --max-seconds 120 --max-mb 20 --keep 600
"""


def add_arguments(parser: ArgumentParser) -> None:
    serving.add_arguments(parser)
    add = parser.add_argument
    add("--results", type=Path, metavar="DIR", help="show results of evaluate and compare from folders below this one")
    add("--max-files", type=int, default=20, metavar="N", help="files restored at once (default: 20)")
    add(
        "--keep",
        type=int,
        default=3600,
        metavar="S",
        help="seconds until uploads and results are deleted (default: 3600)",
    )


def run(args: Namespace) -> int:
    from twostage.app.results import ResultFolders

    try:
        from twostage.app import page
    except ImportError as error:
        raise ConfigError(f"the page needs gradio ({error}): pip install 'twostage[app]'") from None
    limits, access = serving.limits_for(args), serving.access_for(args)
    results = ResultFolders(args.results) if args.results else None
    served = page.serving(
        page.Address(args.host, args.port),
        serving.offered(args),
        serving.devices(args.device),
        limits,
        results=results,
        seconds=args.seconds,
        access=access,
    )
    return serving.serve(served, args.host, "{url}" + (f"?token={access.token}" if access.token else ""))
