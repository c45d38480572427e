"""Input files of the parts, made from a seed: small models, a small corpus and sound files."""

import gc
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torture.harness import Limits, Place
from torture.mutations import RATE, speech
from twostage.audio import sound_files
from twostage.data.sensors import PRESETS, save_sensor
from twostage.models import checkpoint
from twostage.models.features import MelConfig
from twostage.models.restorer import RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import VocoderConfig

STEPS = 12


def tiny(mel: MelConfig | None = None) -> TwoStage:
    """A two-stage model of a few thousand random weights."""
    torch.manual_seed(0)
    mel = mel or MelConfig()
    restorer = RestorerConfig(mel, channels=(4, 8), time_strides=(1 if mel.causal else 2,), dilations=(1,))
    model = TwoStage(TwoStageConfig(restorer, VocoderConfig(mel, upsample_initial_channel=16)))
    with torch.no_grad():
        for name, weight in model.fold().named_parameters():
            fan = weight[0].numel() if weight.ndim > 1 else 1  # initial weights are almost silent
            weight.copy_(torch.randn(weight.shape) * (0.1 if name.endswith("bias") else 1.2 / fan**0.5))
    return model.eval()


class Assets:
    """Files that are made once, in forks of this process, so that it keeps no threads and little memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _asset(self, name: str, make: Callable[[Path], Any]) -> Path:
        path = self.folder / name
        if not path.exists():
            place = Place(self.folder / "making" / name)
            outcome = place.run(lambda: make(path), Limits(300, 0))
            if outcome.code or not path.exists():
                raise RuntimeError(f"{name} cannot be created: {outcome.err}")
        return path

    @property
    def tiny(self) -> Path:
        return self._asset("tiny.safetensors", lambda path: checkpoint.save(path, tiny(), provenance={}))

    @property
    def causal(self) -> Path:
        mel = MelConfig(causal=True)
        return self._asset("causal.safetensors", lambda path: checkpoint.save(path, tiny(mel), provenance={}))

    @property
    def restorer(self) -> Path:
        return self._asset("restorer.safetensors", lambda path: checkpoint.save(path, tiny().restorer, provenance={}))

    @property
    def vocoder(self) -> Path:
        return self._asset("vocoder.safetensors", lambda path: checkpoint.save(path, tiny().vocoder, provenance={}))

    @property
    def onnx(self) -> Path:
        return self._exported("tiny.onnx", self.tiny, stream=False)

    @property
    def step(self) -> Path:
        return self._exported("step.onnx", self.causal, stream=True)

    def _exported(self, name: str, weights: Path, *, stream: bool) -> Path:
        from twostage.export.onnx import export

        return self._asset(
            name, lambda path: export(checkpoint.load(weights), path, stream=stream, provenance={}) and 0
        )

    @property
    def sensor(self) -> Path:
        return self._asset("sensor.yaml", lambda path: save_sensor(path, PRESETS["throat"]))

    @property
    def corpus(self) -> Path:
        """A folder of three clean files of two speakers and two pairs, with manifests of both, JSONL and CSV."""
        return self._asset("corpus", _corpus)

    @property
    def published(self) -> Path:
        """A folder with a generator in the format that HiFi-GAN's authors publish."""
        return self._asset("published", _published)


def _corpus(folder: Path) -> None:
    hidden = folder.with_name("corpus.making")
    clean, pairs = [], []
    for seed in range(3):
        sound = speech(np.random.default_rng(seed), 0.9 + seed / 20)[:, 0]
        sound *= np.maximum(0.02, np.sin(np.arange(len(sound)) / 2500)) ** 0.5
        seconds = len(sound) / RATE
        sound_files.write(hidden / f"{seed}.wav", sound, RATE, overwrite=True)
        clean.append((f"{seed}.wav", f"s{seed % 2}", seconds))
        if seed:
            bone = np.convolve(sound, np.ones(8) / 8, "same").astype(np.float32)
            sound_files.write(hidden / f"bone{seed}.wav", bone, RATE, overwrite=True)
            pairs.append((f"bone{seed}.wav", f"{seed}.wav", f"s{seed}", seconds))
    texts = {
        "clean.csv": "path,speaker,seconds\n" + "".join(f"{p},{s},{t}\n" for p, s, t in clean),
        "pairs.csv": "bone,air,speaker,seconds\n" + "".join(f"{b},{a},{s},{t}\n" for b, a, s, t in pairs),
        "clean.jsonl": "".join(
            f'{{"clean": "{p}", "degraded": null, "speaker": "{s}", "seconds": {t}, "corpus": "", "delay": 0.0}}\n'
            for p, s, t in clean
        ),
        "pairs.jsonl": "".join(
            f'{{"clean": "{a}", "degraded": "{b}", "speaker": "{s}", "seconds": {t}, "corpus": "", "delay": 0.0}}\n'
            for b, a, s, t in pairs
        ),
    }
    for name, text in texts.items():
        (hidden / name).write_text(text)
    hidden.rename(folder)


def _published(folder: Path) -> None:
    import json

    model = tiny().vocoder
    hidden = folder.with_name("published.making")
    hidden.mkdir(exist_ok=True)
    torch.save({"generator": checkpoint.plain_state(model)}, hidden / "generator")
    mel, config = model.config.mel, model.config
    values = {
        "resblock": "1", "num_gpus": 0, "batch_size": 16, "learning_rate": 0.0002, "segment_size": 8192,
        "upsample_rates": list(config.upsample_rates), "upsample_kernel_sizes": list(config.upsample_kernel_sizes),
        "upsample_initial_channel": config.upsample_initial_channel,
        "resblock_kernel_sizes": list(config.resblock_kernel_sizes),
        "resblock_dilation_sizes": [list(sizes) for sizes in config.resblock_dilation_sizes],
        "num_mels": mel.n_mels, "n_fft": mel.n_fft, "hop_size": mel.hop_length, "win_size": mel.win_length,
        "sampling_rate": mel.sample_rate, "fmin": 0, "fmax": 8000, "fmax_for_loss": None,
    }  # fmt: skip
    (hidden / "config.json").write_text(json.dumps(values))
    hidden.rename(folder)


def training(corpus: Path, command: str, run: str, *extra: str, steps: int = STEPS) -> list[str]:
    """Arguments of a small training of stage one (train-restorer) or two (train-vocoder) that stores every step."""
    stage = command.removeprefix("train-")
    manifests = f"data.train=[{corpus / 'clean.csv'}]", f"data.valid=[{corpus / 'clean.csv'}]"
    quick = (
        f"steps={steps}",
        "save_every=1",
        "log_every=1",
        "valid.every=3",
        "valid.items=1",
        "valid.show=1",
        "data.segment_length=2048",
    )
    own = ("optimizer.cooldown=0",) if stage == "restorer" else ()
    return [command, stage, "tiny", *manifests, *quick, *own, *extra, "--run", run]


# modules that commands import when they run: those of most commands, then the others
QUICK = (
    *("yaml", "omegaconf", "tqdm", "scipy.fft", "scipy.signal", "matplotlib.figure", "torch.utils.tensorboard"),
    *("importlib.readers", "librosa.filters"),  # for the mel basis; a user without permissions cannot read them later
    *("matplotlib.backends.backend_agg", "torch.nn.utils.parametrize", "torch._dynamo", "twostage.training.recipes"),
    *(
        "twostage.inference.jobs",
        "twostage.audio.plots",
        "twostage.inference.realtime",
        "twostage.models.import_hifigan",
        "twostage.data.recordings",
    ),
)
SLOW = (
    *(
        "torch.utils.flop_counter",
        "twostage.evaluation.runner",
        "twostage.export.onnx",
        "twostage.evaluation.compare",
        "twostage.corpus.corpus",
    ),
    *(
        "twostage.corpus.ray_cluster",
        "twostage.export.calibration",
        "twostage.data.sensor_plot",
        "twostage.app.page",
        "onnxscript",
    ),
    *("pesq", "pystoi", "onnxruntime", "pyarrow.parquet", "fsspec.implementations.local", "torch.onnx"),
    *("torch.onnx._internal.exporter._core", "xml.etree.ElementTree"),
)


def preload(names: Sequence[str] = ()) -> None:
    """Import modules, all of them by default, so that forks need not import them."""
    for name in names or (*QUICK, *SLOW):
        importlib.import_module(name)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # garbage collection in a fork would copy all pages that it marks
