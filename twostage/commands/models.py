"""``twostage models``: lists models with their properties."""

import json
import logging
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twostage.inference.catalog import ModelInfo

HELP = "list sample rate, size, license and streaming latency of the shipped models or of the given ones"
EXAMPLE = """
twostage models default causal
twostage models runs/restorer default/vocoder --json
"""
COLUMNS = ("name", "kind", "rate", "inputs", "weights", "size", "license", "latency", "runtime")
logger = logging.getLogger(__name__)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="*", metavar="NAME|PATH", help="a model, as `twostage restore --model` takes it (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: Namespace) -> int:
    from twostage.inference.catalog import catalog, describe_one, unusable
    from twostage.utils.packages import WITHOUT_TORCH

    infos = [describe_one(args.model)] if args.model else catalog()
    if args.json:
        print(json.dumps([asdict(info) for info in infos], indent=2))
    else:
        print(table([COLUMNS, *map(_row, infos)]))
    if not args.model and (missing := unusable()):
        logger.warning("%s: ONNX Runtime runs the models; %s cannot be used", WITHOUT_TORCH, ", ".join(missing))
    return 0


def _row(info: "ModelInfo") -> tuple[str, ...]:
    latency = "-" if info.latency_ms is None else f"{info.latency_ms:.0f} ms" + ("" if info.causal else " (windows)")
    weights, size = f"{info.parameters / 1e6:.2f} M", f"{info.bytes / 1e6:.1f} MB"
    rate = f"{info.sample_rate} Hz"
    return info.name, info.kind, rate, str(info.inputs), weights, size, info.license or "?", latency, info.runtime


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows as text with aligned columns.

    >>> print(table([("a", "bb"), ("ccc", "d")]))
    a    bb
    ccc  d
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
