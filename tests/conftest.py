"""Fixtures that tests share: small models, speech-like audio, corpora, scripts as modules."""

import importlib.util
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from small_models import randomize
from streams import causal_model

from twostage.audio import sound_files
from twostage.evaluation import speech_quality
from twostage.models import checkpoint
from twostage.models.restorer import RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import VocoderConfig

torch.set_num_threads(1)
# a process in the background of a shell script ignores Ctrl-C, and its children would, too
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny() -> TwoStage:
    """A two-stage model of a few thousand random weights, large enough for its output to depend on all its context."""
    torch.manual_seed(0)
    restorer = RestorerConfig(channels=(4, 8), time_strides=(2,), blocks=1, dilations=(1,))
    model = TwoStage(TwoStageConfig(restorer, VocoderConfig(upsample_initial_channel=16))).eval().requires_grad_(False)
    randomize(model.fold())
    return model


@pytest.fixture(scope="session")
def tiny_path(tiny: TwoStage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a file of weights with ``tiny``."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    checkpoint.save(path, tiny, provenance={})
    return path


@pytest.fixture(scope="session")
def causal_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a file of weights with ``causal_model()``."""
    path = tmp_path_factory.mktemp("model") / "causal.safetensors"
    checkpoint.save(path, causal_model(), provenance={})
    return str(path)


@pytest.fixture(scope="session")
def speech() -> Callable[..., np.ndarray]:
    """speech(frames, sample_rate=16000, seed=0) -> (frames,): syllables of varying pitch, pauses, a little noise."""

    def make(frames: int, sample_rate: int = 16000, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        time = np.arange(frames) / sample_rate
        pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * time + seed)
        phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
        voice = sum(np.sin(k * phase) / k for k in range(1, 8))
        syllables = np.maximum(0, np.sin(2 * np.pi * 2 * time + 1)) ** 0.5
        return (0.1 * syllables * voice + 1e-3 * rng.standard_normal(frames)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]) -> Path:
    """A manifest of three clean files of two speakers, about a second each."""
    folder = tmp_path_factory.mktemp("corpus")
    for seed in range(3):
        sound_files.write(folder / f"{seed}.wav", speech(14000 + 1000 * seed, seed=seed), 16000)
    rows = "".join(f"{seed}.wav,s{seed % 2},{(14000 + 1000 * seed) / 16000}\n" for seed in range(3))
    (folder / "clean.csv").write_text(f"path,speaker,seconds\n{rows}")
    return folder / "clean.csv"


@pytest.fixture(scope="session")
def paired_corpus(tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]) -> Path:
    """A manifest of two pairs, whose degraded side is a moving average of the clean one."""
    folder = tmp_path_factory.mktemp("pairs")
    for seed in range(2):
        clean = speech(16000, seed=seed)
        sound_files.write(folder / f"{seed}_air.wav", clean, 16000)
        sound_files.write(
            folder / f"{seed}_bone.wav", np.convolve(clean, np.ones(8) / 8, "same").astype(np.float32), 16000
        )
    rows = "".join(f"{seed}_bone.wav,{seed}_air.wav,s{seed},1.0\n" for seed in range(2))
    (folder / "pairs.csv").write_text(f"bone,air,speaker,seconds\n{rows}")
    return folder / "pairs.csv"


@pytest.fixture
def mixed_recordings(tmp_path: Path, speech: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with speech, stereo, silence and a text file with the name of a recording in "in"."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    stereo = np.stack([speech(20000, 44100), speech(20000, 44100, seed=1)])
    sound_files.write("in/good.wav", speech(6000), 16000)
    sound_files.write("in/sub/stereo.flac", stereo, 44100, subtype="PCM_24")
    sound_files.write("in/silent.wav", np.zeros(3000), 8000)
    Path("in/text.wav").write_text("not a sound" * 30)
    return tmp_path


@pytest.fixture
def quick_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace DistillMOS and DNSMOS, which take a second per file, by the level, where their values do not matter."""
    for name in ("distillmos", "dnsmos"):
        monkeypatch.setattr(speech_quality, name, lambda audio: 1 + float(np.abs(audio).mean()))


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """load_script(name) -> the module scripts/name.py, or that of a path below the repository's root."""
    root = Path(__file__).parent.parent

    def load(name: str) -> ModuleType:
        path = root / name if name.endswith(".py") else root / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
