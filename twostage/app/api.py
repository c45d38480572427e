"""The operations of the HTTP interface for programs, independent of HTTP: restoring a file, listing the models."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twostage.app.limits import TooMuch
from twostage.app.service import RestoreRequest, Service
from twostage.app.storage import StorageFull
from twostage.app.work import bounded, named_as_given, room_for
from twostage.app.work_queue import Busy, Closing
from twostage.audio.sound_files import FORMATS, info
from twostage.inference.catalog import describe
from twostage.inference.failures import FAILURES, explain
from twostage.inference.jobs import plan
from twostage.inference.restoration import RestorationReport, restore_file
from twostage.utils.errors import AudioError, Cancelled, ConfigError, TwoStageError
from twostage.utils.files import LATER_BYTES

# parameter of a request -> its description in the OpenAPI document
PARAMETERS = {
    "name": "Name of the uploaded file, which determines its format and the name of the result; in a form it is known.",
    "model": "Name of a model from /v1/models; by default the first one.",
    "device": "Device for the computation; by default the first one that the server offers.",
    "sample_rate": "Rate of the output: that of the model, or of the input.",
    "format": "Format of the output; by default that of the input if it can be written, else wav.",
    "level": "Loudness of the output: that of the input, or of the model.",
    "keep_low_band": "Frequency in Hz below which the input itself is kept; 0 keeps nothing.",
    "if_full_band": "What to do with a channel that is already full-band: restore it, with a warning; copy it; error.",
}
MEDIA_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "oga": "audio/ogg",
    "opus": "audio/ogg",
    "mp3": "audio/mpeg",
    "aif": "audio/aiff",
    "aiff": "audio/aiff",
    "au": "audio/basic",
    "caf": "audio/x-caf",
    "w64": "audio/x-w64",
    "rf64": "audio/wav",
}
LONGEST = 100  # bytes of a file name


@dataclass(frozen=True)
class Refusal:
    """The reason why a request is refused: an HTTP ``status`` and a message."""

    status: int
    text: str


def restore_request(values: Mapping[str, str], service: Service) -> RestoreRequest:
    """The request from its parameters. Raises ConfigError that names the parameter and the value."""
    for name in values:
        if name not in PARAMETERS:
            raise ConfigError(f"no such parameter; there are {', '.join(PARAMETERS)}", subject=name)
    suffix = values.get("format") or None
    if suffix and suffix not in FORMATS:
        raise ConfigError(f"format {suffix}: none of {', '.join(FORMATS)}")
    try:
        low = float(values.get("keep_low_band") or 0)
    except ValueError:
        raise ConfigError(f"keep_low_band is {values['keep_low_band']!r}, must be a number of Hz") from None
    return RestoreRequest(
        values.get("model") or service.models.labels[0],
        values.get("device") or service.devices[0],
        values.get("sample_rate") or "model",
        suffix,
        values.get("level") or "input",
        low,
        values.get("if_full_band") or "restore",
    )


def file_name(name: str, media_type: str = "") -> str:
    """A safe file name, from the name and the media type that a request states.

    >>> file_name("../../etc/take.wav"), file_name("", "audio/x-flac"), file_name("")
    ('take.wav', 'recording.flac', 'recording')
    """
    last = re.split(r"[/\\]", name)[-1]
    safe = "".join(letter for letter in last if letter.isprintable()).strip(". ")
    safe = safe.encode("utf-8", "ignore")[-LONGEST:].lstrip(LATER_BYTES).decode("utf-8", "ignore")
    if safe:
        return safe
    kind = media_type.partition(";")[0].strip().lower().replace("/x-", "/")
    suffix = next((suffix for suffix, other_type in MEDIA_TYPES.items() if other_type.replace("/x-", "/") == kind), "")
    return f"recording.{suffix}" if suffix else "recording"


def named_by_content(path: Path) -> Path:
    """Give the file the suffix of its format if its name has none."""
    if path.suffix.lower().lstrip(".") in FORMATS:
        return path
    try:
        file_info = info(path)
    except AudioError:
        return path  # the restoration reports the reason
    formats = ((suffix, kind) for suffix, kind in FORMATS.items() if kind[0] == file_info.format)
    suffix = next((suffix for suffix, kind in formats if file_info.format != "OGG" or kind[1] == file_info.subtype), "")
    return path.rename(path.with_name(f"{path.name}.{suffix}")) if suffix else path


def restore(
    service: Service, source: Path, folder: Path, request: RestoreRequest, cancel: Callable[[], bool]
) -> RestorationReport:
    """Restore ``source`` into ``folder``, after waiting in the queue; ``report.target`` is the output.

    Raises exceptions that `refusal` converts to responses, and Cancelled when ``cancel`` returns True.
    """
    options = service.options(request)
    (job,) = plan([str(source)], f"{folder / 'out'}/", suffix=request.suffix)
    if job.error:
        raise AudioError(job.error, subject=source.name)
    with named_as_given(source):
        service.limits.check_length(source)

    def check() -> None:
        if cancel():
            raise Cancelled(f"{source.name}: the client has disconnected")

    with service.queue.work(check):
        model = service.models.get(request.model, request.device)
        rate = None if request.sample_rate == "input" else model.sample_rate
        with service.storage.reserve(room_for(source, service.limits, rate)):
            progress = bounded(source, service.limits, lambda seconds: service.queue.check_open())
            with named_as_given(source, job.target):
                return restore_file(model, source, job.target, options, progress=progress, cancel=cancel)


def report_of(report: RestorationReport) -> dict[str, Any]:
    """The entry of a file in the report of `twostage restore --json`, without local folders."""
    values = asdict(report) | {"source": Path(report.source).name, "target": Path(report.target).name}
    del values["plot"]
    return values


def models(service: Service) -> list[dict[str, Any]]:
    """The available models, the default first."""
    described = []
    for label in service.models.labels:
        model = service.models.get(label, service.devices[0])
        described.append(asdict(describe(label, service.models.paths(label), model)))
    return described


def refusal(error: Exception, source: Path) -> Refusal:
    """The HTTP response for one of FAILURES."""
    assert isinstance(error, FAILURES)
    is_file_error = isinstance(error, AudioError) or not isinstance(error, TwoStageError)
    text = explain(error, source.name) if is_file_error else str(error)
    if isinstance(error, TooMuch):
        return Refusal(413, text)
    if isinstance(error, StorageFull):
        return Refusal(507, text)
    if isinstance(error, Busy | Closing | MemoryError):
        return Refusal(503, text)
    if isinstance(error, ConfigError):
        return Refusal(400, text)
    return Refusal(422 if isinstance(error, AudioError) else 500, text)
