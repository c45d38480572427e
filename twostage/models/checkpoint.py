"""Reads and writes weights (safetensors with settings and provenance inside) and training states; no other module does.

A file of weights contains plain weights, with weight normalization folded in, and loads into models with and without
normalization. Only tensors and plain containers are ever unpickled (``torch.load(weights_only=True)``).
"""

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn.utils import parametrize

from twostage.models.enhancer import EnhancerModule
from twostage.models.model_files import DEFAULT, SUFFIX, names, stage_files
from twostage.models.precision import convert, shortfall
from twostage.models.registry import ENHANCERS, KINDS, STAGES, kind_of
from twostage.models.restorer import Restorer
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import Vocoder
from twostage.nn.layers import fold_weight_norm
from twostage.utils.errors import CheckpointError, ConfigError, first_line
from twostage.utils.files import replacing
from twostage.utils.renamed import translated
from twostage.utils.schema import build, parse_json

POINTER = b"version https://git-lfs"  # start of a file whose content Git LFS has not fetched
logger = logging.getLogger(__name__)
LENGTH, DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"


@dataclass(frozen=True)
class Header:
    """The metadata of a file: the kind of model, its settings as plain values, and its provenance."""

    kind: str
    config: dict[str, Any]
    provenance: dict[str, Any]


def save(
    path: str | Path, model: nn.Module, *, provenance: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write one file: plain weights as ``dtype``, settings and ``provenance`` (JSON values) in its metadata. Atomic.

    Raises CheckpointError if a weight is not finite or does not fit ``dtype``, OutputError if the file cannot be
    written; an existing file is replaced.
    """
    tensors = {key: tensor.to("cpu", dtype).contiguous() for key, tensor in plain_state(model).items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{key} is not finite as {dtype}, not written", subject=path)
    config: Any = model.config
    metadata = {
        "format": "twostage",
        "version": "1",
        "kind": kind_of(model),
        "config": json.dumps(asdict(config)),
        "provenance": json.dumps(dict(provenance)),
        "sha256": _digest(tensors),
    }
    content = serialize(tensors, metadata)
    with replacing(path) as partial:
        partial.write_bytes(content)


def load(*paths: str | Path, device: str | torch.device = "cpu", precision: str = "float32") -> EnhancerModule:
    """An enhancer from files of weights, ready for inference: folded, in eval mode, on ``device``.

    As ``models.loading.load``, which also takes ONNX files. Raises CheckpointError, one line that names the file.
    """
    unsupported = shortfall(precision, device)
    if unsupported:
        warnings.warn(unsupported, stacklevel=3)
    model = _load(paths, folded=True).eval().requires_grad_(False).to(device)
    logger.info("loaded %s: a %s, on %s", " ".join(map(str, paths)) or DEFAULT, kind_of(model), device)
    return convert(model, "float32" if unsupported else precision)


def load_for_training(*paths: str | Path) -> EnhancerModule:
    """Load an enhancer with weight normalization, on the CPU, with all of its weights trainable."""
    return _load(paths, folded=False)


def _load(paths: tuple[str | Path, ...], *, folded: bool) -> EnhancerModule:
    files = [file for path in paths or (DEFAULT,) for file in stage_files(path)]
    models = {str(file): load_stage(file, folded=folded) for file in files}
    model = next(iter(models.values())) if len(models) == 1 else _join(models)
    if not isinstance(model, EnhancerModule):
        missing = "restorer" if isinstance(model, Vocoder) else "vocoder"
        raise CheckpointError(f"holds a {kind_of(model)} alone; give a {missing}'s file beside it", subject=files[0])
    return model


def load_stage(path: str | Path, kind: str | None = None, *, folded: bool = False) -> nn.Module:
    """Load the model in a file or folder, on the CPU; with weight normalization unless ``folded``.

    With ``kind``, "restorer" or "vocoder", load that stage, also if ``path`` contains both: a shipped model's name, a
    folder of two files, a file of kind two-stage. Raises CheckpointError.
    """
    file, header, tensors = _read(path, kind)
    config_class, module = KINDS[header.kind]
    try:
        model = module(build(config_class, header.config, header.kind))
    except (ConfigError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"settings inside do not make a {header.kind}: {error}", subject=file) from None
    model = fold_weight_norm(model) if folded else model  # fold first, so that plain weights are copied bit by bit
    assign(model, tensors, str(file))
    return model


def initialize(model: nn.Module, path: str | Path) -> None:
    """Set ``model``'s weights from those of the same kind in ``path``, found as in ``load_stage``."""
    file, _, tensors = _read(path, kind_of(model))
    assign(model, tensors, str(file))


def read_header(path: str | Path) -> Header:
    """Kind, settings and provenance of a file, without its weights. Raises CheckpointError."""
    with _open(Path(path)) as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != "twostage" or metadata.get("kind") not in KINDS:
        raise CheckpointError(
            f"a safetensors file, but not of twostage (unknown kind: {metadata.get('kind')})", subject=path
        )
    try:
        config, provenance = parse_json(metadata["config"]), parse_json(metadata.get("provenance", "{}"))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"settings inside cannot be read: {error!r}", subject=path) from None
    if not isinstance(config, dict) or not isinstance(provenance, dict):
        raise CheckpointError("settings inside cannot be read: not a JSON object", subject=path)
    return Header(metadata["kind"], translated(KINDS[metadata["kind"]][0], config), provenance)


def provenances(*paths: str | Path) -> dict[str, Any]:
    """The provenance of the weights that ``load`` would use, by kind of file."""
    headers = [read_header(file) for path in paths or (DEFAULT,) for file in stage_files(path)]
    return {header.kind: header.provenance for header in headers}


def shipped() -> list[str]:
    """Names of the shipped models that are complete enhancers, the default first."""
    kinds = {name: {read_header(file).kind for file in stage_files(name)} for name in names()}
    complete = [name for name, stages in kinds.items() if stages == STAGES.keys() or stages <= ENHANCERS.keys()]
    return sorted(complete, key=lambda name: (name != DEFAULT, name))


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """``model.state_dict()`` with every parametrized weight replaced by the plain weight."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            state = {key: t for key, t in state.items() if not key.startswith(f"{name}.parametrizations.")}
            state[f"{name}.weight"] = module.weight.detach()
    return state


def assign(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Set all weights of ``model`` from ``tensors``, strictly; both are folded if only one of them is.

    Raises CheckpointError that names ``source`` and the key that is missing, unexpected, of wrong shape or not finite.
    """
    expected = model.state_dict()
    if tensors.keys() != expected.keys():
        expected, tensors = plain_state(model), fold_tensors(tensors)
    _check(expected, tensors, source)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for key, tensor in tensors.items():
            name, _, leaf = key.rpartition(".")
            if parametrize.is_parametrized(modules[name], leaf):
                setattr(modules[name], leaf, tensor.float())  # sets length and direction through right_inverse
            else:
                getattr(modules[name], leaf).copy_(tensor)


def fold_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Combine lengths and directions of weight normalization into plain weights; other tensors are not changed."""
    plain = {}
    for key, tensor in tensors.items():
        if key.endswith(DIRECTION) and key.replace(DIRECTION, LENGTH) in tensors:
            plain[key.replace(DIRECTION, ".weight")] = torch._weight_norm(
                tensor, tensors[key.replace(DIRECTION, LENGTH)]
            )
        elif not key.endswith(LENGTH):
            plain[key] = tensor
    return plain


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a training's state (tensors and plain containers) atomically: a complete file is on disk at any time.

    Raises OutputError if it cannot be written.
    """
    with replacing(path) as partial, _ErrorKeepingFile(FileIO(partial, "w")) as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError:
            if file.refusal:
                raise file.refusal from None
            raise


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a training's state, weights-only. Raises CheckpointError, also if the file is damaged."""
    if not Path(path).is_file():
        raise CheckpointError("no such file", subject=path)
    try:
        _check_sums(path)
        state = unpickled(path)
    except Exception:  # on arbitrary bytes, the unpickler can raise anything
        raise CheckpointError(
            "not a training state, damaged, or it holds code, which is not run", subject=path
        ) from None
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError("not a training state", subject=path)
    return state


def load_discriminators(path: str | Path) -> dict[str, Any]:
    """The weights of the discriminators in a training's state. Raises CheckpointError, also if it has none."""
    adversary = load_state(path).get("adversary")
    if not adversary:
        raise CheckpointError("contains no discriminators", subject=path)
    return adversary["discriminators"]


class _ErrorKeepingFile(BufferedWriter):
    """A file that keeps the OSError of a failed write, which torch.save replaces by a RuntimeError without a reason."""

    refusal: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.refusal = error
            raise


def unpickled(path: str | Path) -> Any:
    """Load tensors and plain containers from a torch file; raises any exception if it contains anything else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle version, which does not matter here
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_sums(path: str | Path) -> None:
    """Raise BadZipFile if the contents of a state differ from their checksums, which torch itself does not verify."""
    with ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise BadZipFile(damaged)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError("no such file", subject=path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        if _is_pointer(path):
            raise CheckpointError("a pointer of Git LFS; `git lfs pull` fetches the weights", subject=path) from None
        raise CheckpointError(f"not a safetensors file, or damaged ({first_line(error)[:120]})", subject=path) from None


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with _open(path) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            written = (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        raise CheckpointError(f"damaged ({first_line(error)[:120]})", subject=path) from None
    if written and written != _digest(tensors):  # older files have none
        raise CheckpointError("damaged, the weights are not those that were written", subject=path)
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values, independent of their order."""
    digest = sha256()
    for key in sorted(tensors):
        digest.update(key.encode() + tensors[key].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    for problem, keys in (("missing", own.keys() - tensors.keys()), ("unexpected", tensors.keys() - own.keys())):
        if keys:
            others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise CheckpointError(f"{min(keys)}{others} {problem}", subject=source)
    for key, tensor in tensors.items():
        if tensor.shape != own[key].shape:
            raise CheckpointError(
                f"{key} has shape {tuple(tensor.shape)}, wanted {tuple(own[key].shape)}", subject=source
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{key} is not finite", subject=source)


def _read(path: str | Path, kind: str | None) -> tuple[Path, Header, dict[str, Tensor]]:
    """The single file that ``path`` names, its header and its weights; with ``kind``, only those of that stage."""
    files = stage_files(path)
    if kind and len(files) > 1:
        files = [file for file in files if read_header(file).kind in (kind, "two-stage")]
    if len(files) != 1:
        raise CheckpointError(
            f"holds {len(files)} {SUFFIX} files{f' with a {kind}' if kind else ''}, wanted one", subject=path
        )
    file, header, tensors = files[0], read_header(files[0]), _tensors(files[0])
    if kind in (None, header.kind):
        return file, header, tensors
    if header.kind != "two-stage":
        raise CheckpointError(f"holds a {header.kind}, wanted a {kind}", subject=file)
    stage_tensors = {key.removeprefix(f"{kind}."): t for key, t in tensors.items() if key.startswith(f"{kind}.")}
    return file, Header(str(kind), header.config.get(str(kind), {}), header.provenance), stage_tensors


def _join(models: Mapping[str, nn.Module]) -> TwoStage:
    """Combine both stages. Raises CheckpointError that names the mel setting in which they differ."""
    files = " and ".join(models)
    stages = {kind_of(model): model for model in models.values()}
    if len(models) != 2 or stages.keys() != STAGES.keys():
        kinds = ", ".join(kind_of(model) for model in models.values())
        raise CheckpointError(f"wanted a restorer and a vocoder, found: {kinds}", subject=files)
    restorer, vocoder = stages["restorer"], stages["vocoder"]
    assert isinstance(restorer, Restorer)
    assert isinstance(vocoder, Vocoder)
    try:
        model = TwoStage(TwoStageConfig(restorer.config, vocoder.config))
    except ConfigError as error:
        raise CheckpointError(f"{error}", subject=files) from None
    model.restorer, model.vocoder = restorer, vocoder
    return model
