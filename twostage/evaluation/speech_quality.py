"""Speech quality without a reference, predicted by published networks that were trained on listener ratings.

They measure sound quality, not correctness: a restorer that produces a wrong word in a good voice scores well. Both
take (T,) arrays at 16 kHz. Their packages, in the ``eval`` extra, contain the weights, and nothing is downloaded. A
network is loaded once in each process and computes on the CPU with torch's number of threads.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float32]

RATE = 16000
DISTILLMOS_WINDOW = 122880  # samples
DNSMOS_SECONDS = 9.01
DNSMOS_WINDOW = int(DNSMOS_SECONDS * RATE)
# DNSMOS P.835: polynomial from the overall output (OVRL) of the network to the scale of listeners, highest power first
DNSMOS_OVERALL = (-0.06766283, 1.11546468, 0.04602535)


def distillmos(audio: Array) -> float:
    """DistillMOS, 1 to 5: the mean over windows of 7.68 s, a second or less apart.

    Stahl and Gamper, "Distillation and Pruning for Scalable Self-Supervised Representation-Based Speech Quality
    Assessment", 2025. Windows are normalized by their peak, so gain has no effect. Recordings shorter than a window are
    padded with silence, which lowers the score: clean speech of 2 s scores about 3, of 6 s 4.4.
    """
    model = _distillmos()
    padded = np.pad(audio, (0, max(0, DISTILLMOS_WINDOW - len(audio))))
    last_start = len(padded) - DISTILLMOS_WINDOW
    starts = [int(fraction * last_start) for fraction in np.linspace(0, 1, math.ceil(last_start / RATE) + 1)]
    with torch.inference_mode():  # one window at a time: memory does not grow with the length
        scores = [float(model(torch.from_numpy(padded[start : start + DISTILLMOS_WINDOW])[None])) for start in starts]
    return float(np.mean(scores))


def dnsmos(audio: Array) -> float:
    """Overall quality of DNSMOS P.835, about 1 to 4.2: the mean over windows of 9.01 s.

    Reddy, Gopal and Cutler, "DNSMOS P.835: A Non-Intrusive Perceptual Objective Speech Quality Metric to Evaluate Noise
    Suppressors", 2022. Shorter recordings are repeated. The level matters: 0.3 of the amplitude can cost 0.4 points.
    """
    session = _dnsmos()
    while len(audio) < DNSMOS_WINDOW:
        audio = np.append(audio, audio)
    seconds = range(int(len(audio) // RATE - DNSMOS_SECONDS) + 1)
    windows = [audio[None, start * RATE : int((start + DNSMOS_SECONDS) * RATE)].astype(np.float32) for start in seconds]
    # the package skips windows whose end is rounded down; others report its scores
    scores = [float(session.run(None, {"input_1": w})[0][0, 2]) for w in windows if w.shape[1] == DNSMOS_WINDOW]
    return float(np.mean(np.polyval(DNSMOS_OVERALL, scores)))


@lru_cache(1)
def _distillmos() -> nn.Module:
    with _without_torchaudio():
        from distillmos import sqa
    with torch.random.fork_rng(devices=[]):  # the random initialization must not change the random state of a training
        model: nn.Module = sqa.ConvTransformerSQAModel(load_weights=False)
    weights = torch.load(sqa.DEFAULT_WEIGHTS_CHKPT, map_location="cpu", weights_only=True)
    model.load_state_dict(weights["model"])
    return model.eval().requires_grad_(False)


@contextmanager
def _without_torchaudio() -> Iterator[None]:
    """Replace torchaudio, whose import fails with some builds of torch, by an empty module.

    distillmos only uses it in its own command line, to read files.
    """
    if "torchaudio" in sys.modules:
        yield
        return
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    try:
        yield
    finally:
        del sys.modules["torchaudio"]


@lru_cache(1)
def _dnsmos() -> Any:
    """A session of the network only: the package would use every core and compute three other scores."""
    import onnxruntime

    package = find_spec("speechmos")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "dnsmos_models" / "sig_bak_ovr.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
