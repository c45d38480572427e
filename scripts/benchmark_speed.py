"""Measure what restoring and training cost on this machine: time, memory, and time relative to matrix products.

    python scripts/benchmark_speed.py --out results/speed

The folder gets speed.md (tables, also printed), speed.json and speed.png (cost by length). Every figure is measured in
a separate process. Alternatives take turns in one process, and medians are reported: of processor time with one thread,
which other programs hardly affect, and of wall-clock time with more. Real-time factors are seconds of work per second
of audio.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.audio import plots, sound_files
from twostage.evaluation import costs
from twostage.evaluation.metrics import score
from twostage.evaluation.report import write_json, write_text
from twostage.inference.restoration import restore, restore_file
from twostage.inference.restore_options import Options
from twostage.models.features import LogMel
from twostage.models.loading import load
from twostage.models.precision import computes_bfloat16, convert
from twostage.models.two_stage import TwoStage
from twostage.models.vocoder import Vocoder
from twostage.nn.layers import fold_weight_norm
from twostage.training.adversary import Adversary
from twostage.training.config import VocoderRun, load_config
from twostage.training.losses import generator_least_squares, mel_l1
from twostage.utils.errors import TwoStageError
from twostage.utils.files import make_folder
from twostage.utils.memory import keep_freed, peak_memory

SAMPLE = Path(__file__).parent.parent / "samples" / "throat.flac"
MATRIX = 2048  # rows and columns of the matrix products that measure the machine's rate
LENGTHS, QUICK_LENGTHS = (1.0, 10.0, 60.0, 600.0, 3600.0), (0.5, 1.0)
VOCODERS = ("hifigan_v1", "hifigan_v2", "hifigan_v3")


def clock() -> float:
    """Seconds of processor time with one thread, of wall-clock time with more."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def interleaved(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each function; all take turns. With two rounds or more, one more round before warms up."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + (rounds > 1)):
        for name, run in work.items():
            started = clock()
            run()
            taken[name].append(clock() - started)
    return {name: statistics.median(seconds[-rounds:]) for name, seconds in taken.items()}


def matrices() -> Callable[[], Tensor]:
    left, right, out = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX), torch.empty(MATRIX, MATRIX)
    return lambda: torch.mm(left, right, out=out)


def gigaflops(seconds: float) -> float:
    return 2 * MATRIX**3 / seconds / 1e9


def speech(seconds: float, multiple: int = 1) -> np.ndarray:
    """The sample recording, repeated, (1, T), with T cut to a multiple of ``multiple``."""
    sound, rate = sound_files.read(SAMPLE)
    length = int(seconds * rate) // multiple * multiple
    return np.tile(sound[:1], -(-length // sound.shape[1]))[:, :length]


def parts(model: TwoStage, audio: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The stages of a forward, each with the output of the previous one as input."""
    vocoder, finish = model.vocoder, model.vocoder.griffin_lim
    mel, input_spectra, sensor = model.mel(audio), model.mel.stft.input_spectra(audio), audio[:, :1]
    restored = model.restored(input_spectra)
    generated = vocoder.generate(restored, input_spectra, sensor)
    work = {
        "mel": lambda: model.mel(audio),
        "restorer": lambda: model.restorer(mel),
        "vocoder": lambda: vocoder.generate(restored, input_spectra, sensor),
    }
    return work | ({"Griffin-Lim": lambda: finish(generated, restored, input_spectra)} if finish else {})


@torch.inference_mode()
def measure_rate(name: str, seconds: float, rounds: int) -> dict[str, Any]:
    """A forward of ``seconds`` against matrix products, and its parts; also in bfloat16 where that is fast."""
    model = load(name)
    assert isinstance(model, TwoStage)
    audio = torch.from_numpy(speech(seconds, model.stride))[None]
    work = {"matrix": matrices(), "float32": lambda: model(audio), **parts(model, audio)}
    if computes_bfloat16("cpu"):
        small = load(name, precision="bfloat16")
        work["bfloat16"] = lambda: small(audio)
    return _rated(interleaved(work, rounds), audio.shape[-1] / model.sample_rate) | {
        "model": name,
        "gmac": costs.gmac_per_second(model, seconds),
    }


def _rated(taken: dict[str, float], seconds: float) -> dict[str, Any]:
    rate = gigaflops(taken.pop("matrix"))
    return {"gigaflops": rate, "factors": {name: each / seconds for name, each in taken.items()}}


@torch.inference_mode()
def measure_vocoder(name: str, seconds: float, rounds: int) -> dict[str, Any]:
    """The vocoder of a configuration with random weights, against matrix products."""
    vocoder = Vocoder(settings_of(name).vocoder).fold().eval()
    mel = torch.randn(1, 80, int(seconds * 62.5)) - 5
    length, work = mel.shape[-1] / 62.5, {"matrix": matrices(), "float32": lambda: vocoder(mel)}
    gmac = costs.macs(vocoder, mel) / 1e9 / length
    return _rated(interleaved(work, rounds), length) | {"model": f"{name}, vocoder alone", "gmac": gmac}


def settings_of(name: str) -> VocoderRun:
    files = [f"data.{name}=[{__file__}]" for name in ("train", "valid")]  # the files must exist and are not read
    return load_config(VocoderRun, ["vocoder", name], ["run_dir=none", *files])


def measure_length(name: str, seconds: float, rounds: int) -> dict[str, Any]:
    """Restoring a file of ``seconds``, and the peak memory of the process."""
    model, options = load(name), Options(overwrite=True)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.wav", Path(folder) / "after.wav"
        with sound_files.Writer(before, 16000, 1) as writer:
            for start in np.arange(0, seconds, 60):
                writer.write(speech(min(60, seconds - start)))

        def restore_once() -> None:
            restore_file(model, before, after, options)

        taken = interleaved({"file": restore_once}, rounds)
    return {"model": name, "seconds": seconds, "factor": taken["file"] / seconds, "memory": peak_memory()}


def measure_quality(name: str) -> dict[str, Any]:
    """The restored sample in bfloat16, scored against that in float32; bfloat16 is emulated where necessary."""
    sound, rate = sound_files.read(SAMPLE)
    model = load(name)
    reference = restore(model, sound[0], rate)
    assert isinstance(model, TwoStage)
    restored = restore(convert(model, "bfloat16"), sound[0], rate)
    ratio = 10 * np.log10(np.square(reference).sum() / np.square(restored - reference).sum())
    return {
        "model": name,
        "snr": float(ratio),
        **score(reference, restored, ("pesq", "stoi", "estoi", "lsd", "mel_l1"))[0],
    }


class PlainAdversary(Adversary):
    """The generator's phase of HiFi-GAN's published code: nothing is frozen, and real features have gradients."""

    def generator_loss(self, fake: Tensor, real: Tensor, *, matching: bool = True) -> dict[str, Tensor]:
        with self._precision():
            of_fake, of_real = self.discriminators(fake), self.discriminators(real)
        of_real, of_fake = ([[m.float() for m in maps] for maps in side] for side in (of_real, of_fake))
        pairs = [(r, f) for rs, fs in zip(of_real, of_fake, strict=True) for r, f in zip(rs, fs, strict=True)]
        distance = torch.stack([F.l1_loss(f, r) for r, f in pairs]).sum()
        return {"adv": generator_least_squares(of_fake), "fm": distance}


def measure_training(name: str, rounds: int) -> dict[str, Any]:
    """A training step of a vocoder with a batch of 4 times 8192 samples, by our code and by a plain implementation."""
    kinds = {"plain": PlainAdversary, "ours": Adversary}
    contexts: dict[str, Any] = {"float32": nullcontext}
    if computes_bfloat16("cpu"):
        contexts["bfloat16"] = partial(torch.autocast, "cpu", torch.bfloat16)
    trained: dict[str, Vocoder] = {}
    steps = {}
    for (kind, adversary_class), (precision, context) in product(kinds.items(), contexts.items()):
        steps[f"{kind}, {precision}"], trained[f"{kind}, {precision}"] = _step(
            settings_of(name), adversary_class, context
        )
    taken = interleaved(steps, rounds)
    plain, ours = (list(trained[f"{kind}, float32"].parameters()) for kind in kinds)
    equal = all(torch.equal(_gradient(p), _gradient(q)) for p, q in zip(plain, ours, strict=True))
    return {"model": name, "seconds": taken, "equal": equal}


def _step(settings: VocoderRun, adversary_class: type[Adversary], context: Any) -> tuple[Callable[[], None], Vocoder]:
    """A training step that never updates the generator, so that its gradients can be compared."""
    torch.manual_seed(0)
    generator, mel = Vocoder(settings.vocoder), LogMel(settings.vocoder.mel)
    adversary = adversary_class(settings.adversary, settings.optimizer, precision=context)
    real = torch.from_numpy(speech(4.0)[0, : 4 * 8192].reshape(4, 1, 8192))

    def step() -> None:
        generator.zero_grad()
        with context():
            fake = generator(mel(real)).float()
        adversary.optimizer.zero_grad()
        adversary.train_step(fake, real, settings.optimizer.learning_rate)
        losses = adversary.generator_loss(fake, real)
        (losses["adv"] + 2 * losses["fm"] + 45 * mel_l1(mel(fake), mel(real))).backward()

    return step, generator


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@torch.inference_mode()
def measure_voicefixer(seconds: float, rounds: int) -> dict[str, Any]:
    """VoiceFixer's pipeline as its package runs it, with random weights (nothing is downloaded), and ours, in turn.

    The memory is that of VoiceFixer only.
    """
    with tempfile.TemporaryDirectory() as home:
        pipeline = _voicefixer(home)
    sound = np.random.default_rng(0).normal(0, 0.05, int(44100 * seconds)).astype(np.float32)
    pipeline.restore_inmem(sound)
    memory = peak_memory()
    ours = load()
    audio = torch.from_numpy(speech(seconds))[None]
    work = {"VoiceFixer": lambda: pipeline.restore_inmem(sound), "default": lambda: ours(audio)}
    taken = interleaved(work, rounds)
    return {"factors": {name: each / seconds for name, each in taken.items()}, "memory": memory}


def _voicefixer(home: str) -> Any:
    """The pipeline of the package voicefixer, which looks for weights in ``home`` when it is imported."""
    os.environ["HOME"] = home

    def fetch(_: str, path: str) -> None:
        Path(path).touch()

    urllib.request.urlretrieve = fetch  # type: ignore[assignment]
    from voicefixer import base
    from voicefixer.vocoder.base import Vocoder as Synthesis
    from voicefixer.vocoder.config import Config
    from voicefixer.vocoder.model.generator import Generator

    Synthesis._load_pretrain = lambda self, _: setattr(self, "model", Generator(Config.cin_channels))
    pipeline = base.VoiceFixer.__new__(base.VoiceFixer)
    nn.Module.__init__(pipeline)
    pipeline._model = base.voicefixer_fe(channels=2, sample_rate=44100).eval()
    return fold_weight_norm(pipeline)


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "rate": measure_rate,
    "vocoder": measure_vocoder,
    "length": measure_length,
    "quality": measure_quality,
    "training": measure_training,
    "voicefixer": measure_voicefixer,
}


def in_a_process(kind: str, threads: int, **arguments: Any) -> dict[str, Any]:
    """The result of a measure in a new process with this number of threads."""
    print(f"{kind}, {threads} threads: {arguments}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--child", json.dumps([kind, threads, arguments])]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return {"threads": threads} | result


def child(kind: str, threads: int, arguments: dict[str, Any]) -> None:
    keep_freed()  # as the command line does
    torch.set_num_threads(threads)
    print(json.dumps(MEASURES[kind](**arguments)))


def machine() -> dict[str, Any]:
    cpu = dict(torch.cpu.get_capabilities())
    vectors = torch.backends.cpu.get_cpu_capability()
    bfloat16 = computes_bfloat16("cpu")
    return {
        "cpu": cpu.get("cpu_name") or platform.processor(),
        "cores": os.cpu_count(),
        "vectors": vectors,
        "bfloat16": bfloat16,
        "torch": torch.__version__,
        "system": platform.system(),
    }


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """The results of all measures that the options select."""
    seconds, rounds = (1.0, 2) if options.quick else (10.0, options.rounds)
    lengths = options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS)
    results: dict[str, Any] = {"machine": machine(), "speed": [], "lengths": [], "training": []}
    for threads in options.threads:
        for name in options.model:
            results["speed"].append(in_a_process("rate", threads, name=name, seconds=seconds, rounds=rounds))
        for name in () if options.quick else VOCODERS:
            results["speed"].append(in_a_process("vocoder", threads, name=name, seconds=seconds, rounds=rounds))
        for name, length in product(options.model, lengths):
            times = rounds if length <= 60 else 1
            results["lengths"].append(in_a_process("length", threads, name=name, seconds=length, rounds=times))
    for name in options.training:
        results["training"].append(in_a_process("training", options.threads[0], name=name, rounds=min(rounds, 3)))
    if options.quality:
        results["quality"] = [in_a_process("quality", options.threads[0], name=name) for name in options.model]
    if options.voicefixer:
        times = 1 if options.quick else 2
        results["voicefixer"] = in_a_process("voicefixer", options.threads[0], seconds=seconds, rounds=times)
    return results


def markdown(results: Mapping[str, Any]) -> str:
    """The tables of all results."""
    words = {**results["machine"], "bfloat16": "yes" if results["machine"]["bfloat16"] else "no"}
    text = "{cpu}, {cores} cores, {vectors}, bfloat16 instructions: {bfloat16}; torch {torch}, {system}\n".format(
        **words
    )
    text += "\n" + _table(
        ("model", "threads", "GMAC/s", "real-time factor", "matrix products, GFLOP/s", "time over 2 MACs at that rate"),
        [_speed_row(row) for row in results["speed"]],
    )
    names = [name for name in results["speed"][0]["factors"] if name not in ("float32", "bfloat16")]
    text += "\n" + _table(
        ("model, real-time factor of", "threads", *names),
        [
            (row["model"], row["threads"], *(f"{row['factors'][name]:.4f}" for name in names))
            for row in results["speed"]
            if len(row["factors"]) > 2
        ],
    )
    text += "\n" + _table(
        ("model", "threads", "seconds of sound", "real-time factor", "memory, MB"),
        [
            (r["model"], r["threads"], f"{r['seconds']:g}", f"{r['factor']:.4f}", f"{r['memory']:.0f}")
            for r in results["lengths"]
        ],
    )
    for row in results["training"]:
        plain = row["seconds"]["plain, float32"]
        text += (
            f"\nA training step with {row['model']}'s vocoder and discriminators, batch 4 of 8192 samples:\n\n"
            + _table(
                ("step", "seconds", "times faster than plain float32"),
                [(name, f"{seconds:.2f}", f"{plain / seconds:.2f}") for name, seconds in row["seconds"].items()],
            )
        )
        text += f"\nThe generator's gradients are {'equal bit by bit' if row['equal'] else 'NOT equal'}.\n"
    if results.get("quality"):
        text += "\nbfloat16 against float32, the restored sample:\n\n" + _table(
            ("model", "SNR, dB", "PESQ-WB", "STOI", "ESTOI", "LSD", "mel L1"),
            [
                (
                    r["model"],
                    f"{r['snr']:.1f}",
                    *(f"{r[name]:.3f}" for name in ("pesq", "stoi", "estoi", "lsd", "mel_l1")),
                )
                for r in results["quality"]
            ],
        )
    if "voicefixer" in results:
        peer = results["voicefixer"]
        text += (
            f"\nVoiceFixer's whole pipeline (44.1 kHz, random weights, {peer['memory']:.0f} MB) and ours:\n\n"
            + _table(
                ("by turns", "real-time factor"), [(name, f"{factor:.4f}") for name, factor in peer["factors"].items()]
            )
        )
    return text


def _speed_row(row: Mapping[str, Any]) -> tuple[object, ...]:
    ideal = 2 * row["gmac"] / row["gigaflops"]
    factor = row["factors"]["float32"]
    times = f"{row['factors']['float32']:.4f}"
    if "bfloat16" in row["factors"]:
        times += f", bfloat16 {row['factors']['bfloat16']:.4f}"
    return row["model"], row["threads"], f"{row['gmac']:.2f}", times, f"{row['gigaflops']:.0f}", f"{factor / ideal:.2f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def charts(results: Mapping[str, Any]) -> list[plots.Chart]:
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {"factor": {}, "memory": {}}
    for row, kind in product(results["lengths"], lines):
        name = f"{row['model']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        lines[kind].setdefault(name, []).append((row["seconds"], row[kind]))
    across = "seconds of sound"
    return [
        plots.Chart(across, "real-time factor", lines["factor"]),
        plots.Chart(across, "memory of the process, MB", lines["memory"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", metavar="DIR", type=Path, help="folder for speed.md, speed.json and speed.png")
    add(
        "--model",
        nargs="+",
        default=["default"],
        metavar="NAME",
        help="shipped models, folders or files of both stages",
    )
    add("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    add("--lengths", nargs="+", type=float, metavar="S", help=f"lengths of files in seconds (default: {LENGTHS})")
    add("--rounds", type=int, default=5, metavar="N", help="rounds for medians (default: 5)")
    add("--training", nargs="*", default=["hifigan_v2"], metavar="CONFIG", help="overlays of the vocoder's training")
    add("--quality", action="store_true", help="also score bfloat16 against float32; slow where it is emulated")
    add("--voicefixer", action="store_true", help="also time the package voicefixer, with random weights")
    add("--quick", action="store_true", help="one second instead of ten, and two rounds, to check that it works")
    add("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(*json.loads(options.child))
    results = measure_all(options)
    text = markdown(results)
    print(text)
    if options.out:
        make_folder(options.out)
        write_text(options.out / "speed.md", text)
        write_json(options.out / "speed.json", results)
        plots.draw_charts(options.out / "speed.png", charts(results), overwrite=True)


if __name__ == "__main__":
    try:
        main()
    except TwoStageError as error:
        sys.exit(f"benchmark_speed: error: {error}")
