"""``twostage restore-corpus``: restores the files of a manifest with many processes or machines."""

import argparse
import logging
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from twostage.commands.options import add_restoration_arguments, is_quiet, restoration_options
from twostage.utils.errors import one_line
from twostage.utils.signals import terminable

if TYPE_CHECKING:
    from twostage.corpus.table import Result

HELP = "restore the files of a manifest on a Ray cluster, with a table of results; an interrupted run can be continued"
EXAMPLE = """
twostage restore-corpus corpus.jsonl -o restored/ --workers 4
twostage restore-corpus s3://bucket/corpus.csv -o s3://bucket/restored --address auto --format flac
"""
logger = logging.getLogger(__name__)
PACE = 10.0  # seconds between progress lines
SHOWN = 20  # errors and warnings that are printed; the table contains all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("manifest", metavar="MANIFEST", help=".jsonl or .csv, a path or URL; its paths are relative to it, or URLs")
    add("-o", "--out", required=True, metavar="DEST", help="a new folder, or that of a run to continue; a path or URL")
    add(
        "--model",
        nargs="+",
        action="extend",
        metavar="NAME|PATH",
        help="model, as for restore; its files are sent to all machines (default: default)",
    )
    add(
        "--address",
        default="",
        metavar="HOST:PORT",
        help="address of a Ray cluster, or auto (default: start Ray on this machine)",
    )
    add(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="number of workers, each with its own model (default: as many as fit)",
    )
    add("--threads", type=int, default=1, metavar="N", help="threads for each worker (default: 1)")
    add("--batch", type=int, default=1, metavar="N", help="windows to process at once (default: 1)")
    add_restoration_arguments(parser)
    add("--overwrite", action="store_true", help="discard the results of an earlier run and restore all files again")


def run(args: argparse.Namespace) -> int:
    from twostage.corpus import corpus
    from twostage.corpus.ray_cluster import ClusterConfig, cluster, restored
    from twostage.corpus.storage import Store, require
    from twostage.corpus.table import Table

    require("ray", "pyarrow", "pandas")  # before anything is written or printed
    config = ClusterConfig(args.address, args.workers, args.threads, args.device)
    options = restoration_options(args, batch=args.batch)
    sources, home = corpus.sources(args.manifest)
    weights = corpus.ModelWeights.read(*args.model or [])
    weights.load()  # fail here rather than on every machine
    precision = "float32" if args.precision == "float32" else "bfloat16"
    job = corpus.CorpusJob(args.out, weights.digest, options, precision, args.format or "")
    done = corpus.begin(job, overwrite=args.overwrite)
    table = Table(Store(args.out))
    items = list(corpus.plan(sources, home, done, suffix=args.format or ""))
    refused = corpus.refused(items, job)
    table.add(list(refused.values()))
    pending = [item for item in items if item.source not in refused]
    reporter = CorpusReporter(sys.stdout, len(items), len(sources) - len(items), quiet=is_quiet(args))
    reporter.add(list(refused.values()))
    try:
        if pending:
            with cluster(config) as resources, terminable():  # Ray has replaced our handler
                reporter.begin(f"{resources.workers} x {resources.device}")
                for results in restored(pending, job, weights, resources):
                    reporter.add(results)
    finally:
        table.fold()
        Store(args.out).sweep()
        reporter.summary()
    return int(reporter.counts["failed"] > 0)


class CorpusReporter:
    """The output for the user: progress lines, the first errors, a summary."""

    def __init__(self, out: Any, files: int, skipped: int, *, quiet: bool = False) -> None:
        self._out, self._files, self._skipped, self._quiet = out, files, skipped, quiet
        self._seconds, self._where, self._warned = 0.0, "", 0
        self._started = self._said = time.monotonic()
        self._first: tuple[float, int] | None = None  # time and number of files of the first results
        self.counts: Counter[str] = Counter()

    def begin(self, where: str) -> None:
        self._where = f" on {where}"
        self._started = self._said = time.monotonic()
        self._line(f"{self._files} files to restore{self._where}, {self._skipped} done before")

    def add(self, results: "list[Result]") -> None:
        for result in results:
            self.counts[result.status] += 1
            self._seconds += result.seconds
            if result.error and self.counts["failed"] <= SHOWN:
                print(f"twostage: error: {one_line(result.error)}", file=sys.stderr, flush=True)
            self._warned += bool(result.warnings)
            if result.warnings and self._warned <= SHOWN:
                logger.warning("%s: %s", result.path, result.warnings)
        if results and not self._first:
            self._first = time.monotonic(), self.counts.total()
        if time.monotonic() - self._said > PACE:
            self._said = time.monotonic()
            self._line(self._state())

    def summary(self) -> None:
        for kind, count in (("errors", self.counts["failed"]), ("warnings", self._warned)):
            if count > SHOWN:
                print(f"twostage: {count - SHOWN} more {kind} are in the table", file=sys.stderr)
        missing = self._files - self.counts.total()
        self._line(self._state() + (f"; {missing} not done, the same command continues with them" if missing else ""))

    def _state(self) -> str:
        elapsed, done = time.monotonic() - self._started, self.counts.total()
        counts = [f"{self.counts['restored']} restored"]
        counts += [f"{self._skipped} done before"] if self._skipped else []
        counts += [f"{self.counts['failed']} failed"] if self.counts["failed"] else []
        pace = f"; {self._seconds:.1f} s of sound in {elapsed:.1f} s{self._where}" if self._seconds else ""
        return f"{', '.join(counts)} of {self._files + self._skipped}{pace}{self._left(done)}"

    def _left(self, done: int) -> str:
        since, first_count = self._first or (0.0, done)
        if not first_count < done < self._files:
            return ""
        return f", {(time.monotonic() - since) / (done - first_count) * (self._files - done):.0f} s left"

    def _line(self, text: str) -> None:
        if not self._quiet:
            print(text, file=self._out, flush=True)
