"""``twostage restore``: restores sound files."""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.commands.options import (
    add_restoration_arguments,
    is_quiet,
    precision_for,
    restoration_options,
)
from twostage.utils.devices import device_for
from twostage.utils.errors import AudioError, ConfigError, OutputError, TwoStageError, called, one_line

if TYPE_CHECKING:
    from twostage.inference.jobs import RestoreJob
    from twostage.inference.pipes import Ends
    from twostage.inference.rendering import ProgressCallback
    from twostage.inference.restoration import RestorationReport
    from twostage.inference.restore_options import Options
    from twostage.models.protocol import Enhancer

HELP = "restore bone-conducted recordings: files, folders or patterns, of any length and number of channels"
EXAMPLE = """
twostage restore recording.wav -o restored.wav --plot
twostage restore recordings/ -o restored/ --format flac --sample-rate input --json report.json
cat recording.wav | twostage restore - -o - | aplay -q
"""
logger = logging.getLogger(__name__)
LONG = 600.0  # seconds of sound from which on a progress bar is written even to a log file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a sound file, a folder (with all below it), a quoted pattern, or - for standard input",
    )
    add("-o", "--out", required=True, metavar="OUT", help="a sound file for one input, a folder (trees are kept), or -")
    add(
        "--model",
        nargs="+",
        action="extend",
        metavar="NAME|PATH",
        help="a shipped model, a folder, a file, or a restorer's and a vocoder's file (default: default)",
    )
    add_restoration_arguments(parser)
    add("--plot", action="store_true", help="draw spectrograms before and after beside each output, as PNG")
    add("--json", nargs="?", const="-", metavar="FILE.json", help="write a JSON report (default: to standard output)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    existing.add_argument("--skip-existing", action="store_true", help="skip inputs whose output exists")


def run(args: argparse.Namespace) -> int:
    from twostage.inference.pipes import ends
    from twostage.utils.packages import installed

    if args.plot and not installed("matplotlib"):
        raise ConfigError("--plot: needs matplotlib, which is not installed (pip install matplotlib)")
    if args.out == "-" and (args.plot or args.json == "-"):
        raise ConfigError(f"-o -: sound goes to standard output, so {'--plot' if args.plot else '--json'} needs a file")
    with ends(args.inputs, args.out, args.format) as names:
        return _restored(args, names)


def _restored(args: argparse.Namespace, names: "Ends") -> int:
    from twostage.inference.failures import Failure, one_by_one
    from twostage.inference.jobs import plan
    from twostage.models.loading import load

    options = restoration_options(args, overwrite=args.overwrite)
    _check_report_name(args)
    passed_over: list[Path] = []
    jobs = plan(names.inputs, names.out, suffix=args.format, plot=args.plot, passed_over=passed_over)
    pending = [job for job in jobs if not job.error and not (args.skip_existing and _is_done(job))]
    device, precision = _where(args, bool(pending))
    model = load(*args.model or [], device=device, precision=precision) if pending else None
    reports: list[RestorationReport] = []
    to_restore, written = set(pending), dict[Path, Path]()
    reporter = RestoreReporter(sys.stderr if "-" in (args.json, args.out) else sys.stdout, quiet=is_quiet(args))
    with reporter.bar(pending) as progress:

        def work(job: "RestoreJob") -> "RestorationReport":
            needed = model if job in to_restore else None
            with called(names.names):
                return _do(needed, job, options, progress, names, skip=args.skip_existing, written=written)

        try:
            for job, outcome in one_by_one(jobs, work, name=lambda job: names.name(job.source)):
                report = _failed(job, outcome.error) if isinstance(outcome, Failure) else outcome
                if report.status != "failed":
                    written[job.source] = job.target
                report.source, report.target = names.name(report.source), names.name(report.target)
                reports.append(report)
                reporter.file(report)
        finally:
            reporter.summary(reports, len(jobs), device, len(passed_over))
            _write_report(args, reports, device, precision, passed_over)
    names.deliver()
    return int(any(report.status == "failed" for report in reports))


def _where(args: argparse.Namespace, loading: bool) -> tuple[str, str]:
    """Device and precision; for an ONNX model, the CPU and float32."""
    from twostage.models.loading import onnx_for

    if not (loading and onnx_for(*args.model or [])):
        device = device_for(args.device, "--device")
        return device, precision_for(args.precision, device)
    if args.device != "auto":
        device_for(args.device, "--device")  # an unavailable device is an error even so
    if args.precision != "float32":
        logger.warning("--precision %s: an ONNX file keeps the precision of its export", args.precision)
    return "cpu", "float32"


def _do(
    model: "Enhancer | None",
    job: "RestoreJob",
    options: "Options",
    progress: "ProgressCallback",
    names: "Ends",
    *,
    skip: bool,
    written: Mapping[Path, Path],
) -> "RestorationReport":
    """Restore one file. It is skipped if its output exists, and refused if another input has the same output."""
    from twostage.audio.sound_files import info
    from twostage.inference.restoration import restore_file
    from twostage.utils.files import check_writable

    if job.error:
        raise AudioError(job.error, subject=job.source)
    if winner := job.beaten_by(written):
        info(job.source)  # report an unreadable file as such
        reason = f"would write {names.name(job.target)}, which {names.name(winner)} writes"
        raise AudioError(reason, subject=job.source)
    if model is None or (skip and _is_done(job)):  # another process may restore the same folder
        return _skipped(job)
    if job.plot:
        check_writable(job.plot, options.overwrite)
    try:
        report = restore_file(model, job.source, job.target, options, progress=progress)
    except OutputError:
        if skip and _is_done(job):  # another process was faster
            return _skipped(job)
        raise
    if job.plot:
        _plot(job, report, model.sample_rate / 2, options)
    return report


def _skipped(job: "RestoreJob") -> "RestorationReport":
    from twostage.inference.restoration import RestorationReport

    return RestorationReport(str(job.source), str(job.target), status="skipped")


def _failed(job: "RestoreJob", error: str) -> "RestorationReport":
    from twostage.inference.restoration import RestorationReport

    return RestorationReport(str(job.source), str(job.target), status="failed", error=error)


def _is_done(job: "RestoreJob") -> bool:
    try:
        return job.target.exists()
    except OSError:  # such as a name that is too long, which is reported later
        return False


def _plot(job: "RestoreJob", report: "RestorationReport", top: float, options: "Options") -> None:
    """Draw the spectrograms; if that fails, the restored file is kept and the next files are processed."""
    from twostage.audio.plots import before_after, optional

    assert job.plot is not None
    with optional(job.plot, report.warnings.append):
        before_after(job.plot, job.source, job.target, top=top, overwrite=options.overwrite, salvage=options.salvage)
        report.plot = str(job.plot)


class RestoreReporter:
    """The output for the user: a progress bar, a line per file, a summary. Warnings and errors go to stderr."""

    def __init__(self, out: Any, *, quiet: bool = False) -> None:
        self._out, self._quiet = out, quiet

    @contextmanager
    def bar(self, jobs: "list[RestoreJob]") -> "Iterator[ProgressCallback]":
        from tqdm import tqdm

        total = sum(_seconds(job) for job in jobs)
        terminal = sys.stderr.isatty()
        with tqdm(
            total=round(total, 1),
            unit="s",
            desc="restoring",
            disable=self._quiet or (not terminal and total < LONG),
            mininterval=0.2 if terminal else 60.0,
            leave=False,
            bar_format="{desc}: {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s of sound, {remaining} left",
        ) as bar:
            yield lambda seconds: bar.update(seconds) and None

    def file(self, report: "RestorationReport") -> None:
        for warning in report.warnings:
            logger.warning("%s: %s", report.source, warning)
        if report.error:
            self._line(f"twostage: error: {report.error}", sys.stderr)
        elif report.status == "skipped":
            self._say(f"{report.source}: skipped, {report.target} exists")
        else:
            pace = f"{report.seconds:.2f} s, {report.realtime_factor:.2f} x real time"
            self._say(f"{report.source} -> {report.target}  ({pace})")

    def summary(self, reports: "list[RestorationReport]", jobs: int, device: str, passed_over: int = 0) -> None:
        counts = {s: sum(r.status == s for r in reports) for s in ("restored", "skipped", "failed")}
        outcome = ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "restored")
        total = _summary(reports)
        missing = f", {jobs - len(reports)} not done" if jobs > len(reports) else ""
        pace = (
            f"; {total['seconds']:.1f} s of sound in {total['elapsed']:.1f} s on {device}" if counts["restored"] else ""
        )
        ignored = f"; {passed_over} files passed over that are not sound by their names" if passed_over else ""
        self._say(outcome + missing + pace + ignored)

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._line(text, self._out)

    def _line(self, text: str, file: Any) -> None:
        from tqdm import tqdm

        tqdm.write(one_line(text), file=file)  # above the progress bar
        file.flush()


def _seconds(job: "RestoreJob") -> float:
    from twostage.audio.sound_files import info

    try:
        return info(job.source).seconds
    except TwoStageError:
        return 0.0  # the error is reported when the file is restored


def _summary(reports: "list[RestorationReport]") -> dict[str, Any]:
    restored = [report for report in reports if report.status == "restored"]
    seconds, elapsed = sum(r.seconds for r in restored), sum(r.elapsed for r in restored)
    return {
        **{status: sum(r.status == status for r in reports) for status in ("restored", "skipped", "failed")},
        "seconds": seconds,
        "elapsed": elapsed,
        "realtime_factor": elapsed / seconds if seconds else 0.0,
    }


def _check_report_name(args: argparse.Namespace) -> None:
    from twostage.utils.files import check_writable

    if args.json in (None, "-"):
        return
    if not args.json.endswith(".json"):  # otherwise "--json a.wav" would use an input as the name of the report
        raise ConfigError(f"--json {args.json}: the name of the report must end in .json")
    if not Path(args.json).parent.is_dir():
        raise ConfigError(f"--json {args.json}: no such folder")
    check_writable(Path(args.json), args.overwrite or args.skip_existing)


def _write_report(
    args: argparse.Namespace, reports: "list[RestorationReport]", device: str, precision: str, passed_over: list[Path]
) -> None:
    from twostage import __version__
    from twostage.utils.files import replacing

    if args.json is None:
        return
    report = {
        "twostage": __version__,
        "model": args.model or ["default"],
        "device": device,
        "precision": precision,
        "files": [asdict(r) for r in reports],
        "passed_over": [str(path) for path in passed_over],
        "summary": _summary(reports),
    }
    text = json.dumps(report, indent=2)
    if args.json == "-":
        print(text)
        return
    with replacing(args.json) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
