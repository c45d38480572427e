"""``twostage serve``: serves restoration over HTTP, for programs."""

from argparse import ArgumentParser, Namespace

from twostage.commands import serving
from twostage.utils.errors import ConfigError

HELP = "serve restoration over HTTP without a web interface: POST /v1/restore, GET /v1/models, an OpenAPI document"
EXAMPLE = """
twostage serve --port 8000
twostage serve --host 0.0.0.0 --max-seconds 120 --jobs 2 --allow-host speech.example.org
"""


def add_arguments(parser: ArgumentParser) -> None:
    serving.add_arguments(parser)


def run(args: Namespace) -> int:
    try:
        from twostage.app import server
    except ImportError as error:
        raise ConfigError(f"serving needs starlette and uvicorn ({error}): pip install 'twostage[app]'") from None
    limits, access = serving.limits_for(args), serving.access_for(args)
    served = server.serving(
        server.Address(args.host, args.port),
        serving.offered(args),
        serving.devices(args.device),
        limits,
        seconds=args.seconds,
        access=access,
    )
    token = f", token {access.token}" if access.token else ""
    return serving.serve(served, args.host, f"{{url}}v1/restore, {{url}}openapi.json{token}")
