"""``twostage export``: exports a model to ONNX."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from twostage.utils.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twostage.audio.types import Audio

HELP = "export a model to ONNX, for whole recordings or as one step of a stream"
EXAMPLE = """
twostage export default default.onnx
twostage export causal step.onnx --stream
twostage export default small.onnx --int8 --calibrate dev.csv --simulate throat
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="+", metavar="MODEL", help="as in `twostage restore`: a name, a folder, one or two files")
    add("out", metavar="OUT.onnx", help="file to write")
    add(
        "--stream",
        action="store_true",
        help="export one step of a stream with its states as inputs and outputs (causal models)",
    )
    add("--int8", action="store_true", help="quantize most convolutions; needs --calibrate")
    add("--calibrate", metavar="SPEECH", help="calibration data for --int8: a folder of recordings, or a manifest")
    add(
        "--simulate",
        metavar="SENSOR",
        help="sensor to simulate if --calibrate is clean speech: a preset or a YAML file",
    )
    add("--overwrite", action="store_true", help="replace OUT.onnx if it exists")


def run(args: Namespace) -> int:
    from pathlib import Path

    from twostage.export.onnx import export
    from twostage.models.checkpoint import provenances
    from twostage.models.loading import load
    from twostage.models.onnx_enhancer import OnnxEnhancer
    from twostage.utils.files import check_writable

    _check(args)
    check_writable(Path(args.out), args.overwrite)
    model = load(*args.model)
    if isinstance(model, OnnxEnhancer):
        raise CheckpointError("is ONNX already", subject=args.model[0])
    if args.int8 and model.inputs > 1:
        raise CheckpointError(f"takes {model.inputs} channels; --int8 is for models of one", subject=args.model[0])
    speech = _speech(args, model.sample_rate) if args.int8 else None
    written = export(model, args.out, stream=args.stream, provenance=provenances(*args.model), speech=speech)
    compared = "log-mels within" if args.int8 else "within"
    size = f"{written.size / 1e6:.1f} MB, {written.operators} operators"
    print(f"{args.out}: {size}, {compared} {written.difference:.1g} of PyTorch's")
    return 0


def _check(args: Namespace) -> None:
    if not args.out.endswith(".onnx"):
        raise ConfigError("the name of the file to write must end in .onnx", subject=args.out)
    if args.int8 != bool(args.calibrate):
        raise ConfigError("--int8 and --calibrate belong together: the speech for calibrating the ranges")
    if args.simulate and not args.int8:
        raise ConfigError("--simulate belongs to --calibrate")


def _speech(args: Namespace, sample_rate: int) -> "Iterator[Audio]":
    from twostage.data.sensors import load_sensor
    from twostage.export.calibration import calibration_speech

    sensor = load_sensor(args.simulate) if args.simulate else None
    return calibration_speech(args.calibrate, sensor, sample_rate)
