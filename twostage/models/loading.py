"""``load`` for every kind of model. PyTorch is imported for files of weights, but not for ONNX files."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from twostage.models.model_files import DEFAULT, STEP, names, names_with_onnx, onnx_beside, onnx_file
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.models.protocol import Enhancer
from twostage.utils.errors import CheckpointError
from twostage.utils.packages import WITHOUT_TORCH, installed

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def load(
    *paths: str | Path, device: "str | torch.device" = "cpu", precision: str = "float32", threads: int | None = None
) -> Enhancer:
    """An enhancer ready for inference: folded, in eval mode, on ``device``.

    Without a path, the default model is loaded. One path is the name of a shipped model or of one of its stages, such
    as "default/vocoder", or a folder of weights, or a file. A restorer's file and a vocoder's, in any order, are
    combined to a TwoStage. An ONNX file runs on the CPU in the precision in which it was written, whatever the device
    and the precision are. If PyTorch is not installed, a shipped model or a folder is loaded from the ONNX file in it.
    A folder may be a snapshot that huggingface_hub has downloaded, or the cache folder that contains it; nothing is
    downloaded here.

    ``precision`` "bfloat16", or "bf16", is that of convolutions; on machines that do not support it, float32 is used,
    with a warning. ``threads`` is the number of threads of an ONNX model, otherwise that of PyTorch in the whole
    process; None: as many as PyTorch has, or all cores. Raises CheckpointError, one line that names the file.
    """
    if onnx := onnx_for(*paths):
        logger.info("loaded %s: ONNX, on cpu", onnx)
        return OnnxEnhancer(onnx, threads)
    import torch

    from twostage.models import checkpoint

    if threads:
        torch.set_num_threads(threads)
    return checkpoint.load(*paths, device=device, precision=precision)


def load_for_stream(*paths: str | Path, threads: int | None = None) -> Enhancer:
    """As ``load``, but a shipped causal model runs as its ONNX step if ONNX Runtime is installed.

    This takes a third of the time. Other folders are loaded from their weights, since a graph in them may be older than
    the weights.
    """
    name = str(paths[0]) if len(paths) == 1 else ""
    if name in names() and installed("onnxruntime") and (onnx := onnx_beside(paths)) and onnx.name == STEP:
        return load(onnx, threads=threads)
    return load(*paths, threads=threads)


def onnx_for(*paths: str | Path) -> Path | None:
    """The ONNX file that ``load`` uses; None if it uses weights and PyTorch. Raises CheckpointError if it cannot."""
    for path in paths:
        if onnx := onnx_file(path):
            if len(paths) > 1:
                raise CheckpointError("contains a complete model, so it must be the only path", subject=path)
            return onnx
    if installed("torch"):
        return None
    if onnx_path := onnx_beside(paths):
        return onnx_path
    usable = ", ".join(names_with_onnx()) or "none of the shipped models"
    raise CheckpointError(
        f"{WITHOUT_TORCH}; without it, ONNX files can be used, and {usable}",
        subject=", ".join(map(str, paths)) or DEFAULT,
    )
