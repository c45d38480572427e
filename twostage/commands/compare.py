"""``twostage compare``: evaluations of several systems in one table and in plots."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

HELP = "join evaluations into one table, and draw quality against cost, errors by frequency, spectrograms"
EXAMPLE = """
twostage compare scores/dccrn scores/eben scores/two-stage -o comparison
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, metavar="DIR", help="folders that `twostage evaluate` wrote")
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="folder for tables and pictures")
    parser.add_argument("--metric", default="estoi", help="metric to plot against cost (default: estoi)")
    parser.add_argument("--title", default="Comparison", help="title of the table (default: Comparison)")


def run(args: Namespace) -> int:
    from twostage.utils.errors import ConfigError, DataError

    for folder in args.results:  # before imports that take seconds
        if not folder.is_dir():
            raise DataError("no such folder", subject=folder)
    if args.out.resolve() in [folder.resolve() for folder in args.results]:
        raise ConfigError(f"--out {args.out}: is one of the folders to compare")
    from twostage.evaluation.compare import compare

    print(compare(args.results, args.out, metric=args.metric, title=args.title))
    return 0
