"""Finds the files of a model by name, folder or path. Only file names are examined, no contents."""

import os
from collections.abc import Sequence
from pathlib import Path

from twostage.utils.errors import CheckpointError

SUFFIX, ONNX, DISCRIMINATORS = ".safetensors", ".onnx", "discriminators.pt"
DEFAULT = "default"
STEP = "step.onnx"  # the graph of one step of a stream, beside the weights of a shipped causal model
PACKAGE = Path(__file__).parent.parent
SHIPPED = (PACKAGE / "checkpoints", PACKAGE.parent / "checkpoints")


def names() -> list[str]:
    """Names of all shipped models."""
    return sorted({file.parent.name for home in SHIPPED for file in home.glob(f"*/*{SUFFIX}")})


def names_with_onnx() -> list[str]:
    """Names of the shipped models with an ONNX file beside them, the default first."""
    folders = {file.parent.name for home in SHIPPED for file in home.glob(f"*/*{ONNX}")}
    return sorted(folders, key=lambda name: (name != DEFAULT, name))


def model_files(path: str | Path) -> list[Path]:
    """The files that ``load`` reads for a name, folder or path: an ONNX file, or those of stages."""
    onnx = onnx_file(path)
    return [onnx] if onnx else stage_files(path)


def onnx_file(path: str | Path) -> Path | None:
    """The ONNX file that a path names: itself, or the one in a folder that contains no other weights."""
    if Path(path).suffix == ONNX:
        return Path(path)
    if not Path(path).is_dir():
        return None
    folder = _find(path)
    files = sorted(folder.glob(f"*{ONNX}"))
    return files[0] if len(files) == 1 and not any(folder.glob(f"*{SUFFIX}")) else None


def stage_files(path: str | Path) -> list[Path]:
    """The files that a name, folder or path names: one, or a folder's two stages."""
    location = _find(path)
    if location.is_file():
        return [location]
    for name in ("best", "last"):  # a training's run directory
        if (location / f"{name}{SUFFIX}").is_file():
            return [location / f"{name}{SUFFIX}"]
    files = sorted(location.glob(f"*{SUFFIX}"))
    if not 1 <= len(files) <= 2:
        raise CheckpointError(f"holds {len(files)} {SUFFIX} files, wanted one or two", subject=location)
    return files


def state_file(path: str | Path, state: str) -> Path:
    """A file itself, or in a folder: a run directory's training state, called ``state``, or saved discriminators."""
    location = _find(path)
    if location.is_file():
        return location
    for name in (state, DISCRIMINATORS):
        if (location / name).is_file():
            return location / name
    raise CheckpointError(f"holds neither {state} nor {DISCRIMINATORS}", subject=location)


def _find(path: str | Path) -> Path:
    if "/" not in str(path) and not Path(path).suffix:  # for a bare name, shipped models precede folders
        for home in SHIPPED:
            if (home / path).is_dir():
                return home / path
    if not Path(path).exists():
        if Path(path).is_symlink():
            raise CheckpointError(f"a link to {os.readlink(path)}, which does not exist", subject=path)
        for file in (home / f"{path}{SUFFIX}" for home in SHIPPED):  # one shipped stage: default/vocoder
            if file.is_file():
                return file
        raise CheckpointError(
            f"no such file, folder or shipped model ({', '.join(names()) or 'none are shipped'})", subject=path
        )
    return _snapshot(Path(path))


def _snapshot(path: Path) -> Path:
    """The snapshot of the main branch, for a model's folder in the cache of huggingface_hub; else the path itself."""
    if not ((path / "snapshots").is_dir() and (path / "refs").is_dir()):
        return path
    try:
        revision = (path / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        revision = ""
    revisions = sorted(folder.name for folder in (path / "snapshots").iterdir())
    if revision not in revisions:
        raise CheckpointError(
            f"no snapshot of main; name one of {', '.join(revisions) or 'none'} in snapshots/", subject=path
        )
    return path / "snapshots" / revision


def onnx_beside(paths: Sequence[str | Path]) -> Path | None:
    """The ONNX file beside the weights of the folder or shipped model in ``paths``; without paths, the default's."""
    folder = _find(paths[0] if paths else DEFAULT)
    files = sorted(folder.glob(f"*{ONNX}")) if folder.is_dir() else []
    return files[0] if len(paths) <= 1 and len(files) == 1 else None
