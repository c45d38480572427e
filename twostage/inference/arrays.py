"""Arrays and tensors of samples at the interface: checked, converted to float, and back to the original type."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twostage.audio.sound_files import FASTEST, SLOWEST
from twostage.audio.types import Audio
from twostage.utils.errors import AudioError
from twostage.utils.packages import is_tensor

if TYPE_CHECKING:
    import torch

PAIR = 2  # channels that may have less than as many samples; of more, samples and channels have changed places

Floats = NDArray[np.float32] | NDArray[np.float64]


class Samples(NamedTuple):
    """Samples (T,) or (C, T) at full scale 1, in their original precision, with their original type, dtype and device.

    ``step`` is the difference between two adjacent values of an integer type; 0 for floats.
    """

    audio: Floats
    give_back: Callable[[Audio], Any]
    step: float


def check_sample_rate(sample_rate: Any) -> int:
    """A sample rate in Hz, within what files may have. Raises AudioError."""
    whole = isinstance(sample_rate, int | float | np.integer | np.floating) and not isinstance(sample_rate, bool)
    if not (whole and SLOWEST <= sample_rate <= FASTEST and sample_rate == int(sample_rate)):
        wanted = f"must be a whole number of Hz from {SLOWEST} to {FASTEST}"
        raise AudioError(f"sample_rate is {sample_rate!r}, {wanted}")
    return int(sample_rate)


def wanted_shape(shape: tuple[int, ...]) -> str:
    """A description of the expected shape if it is not (T,) or (C, T); empty otherwise."""
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] == 0):
        return "(T,) or (C, T)"
    return "(C, T): it is of more channels than samples" if len(shape) == 2 and shape[0] > max(PAIR, shape[1]) else ""


def taken(audio: Any, *, name: str = "audio", wanted: Callable[[tuple[int, ...]], str] = wanted_shape) -> Samples:
    """What may be restored: floats, and integers at their full scale, silence in the middle of unsigned ones.

    Raises AudioError for any other dtype, by name, and for a shape of which ``wanted`` says something.
    """
    samples = _of_tensor(audio, name) if is_tensor(audio) else _of_array(audio, name)
    shape = tuple(samples.audio.shape)
    if said := wanted(shape):
        raise AudioError(f"{name} {_has(name)} shape {shape}, wanted {said}")
    return samples


def _has(name: str) -> str:
    return "have" if name.endswith("s") else "has"


def _is(name: str) -> str:
    return "are" if name.endswith("s") else "is"


def _of_array(audio: Any, name: str) -> Samples:
    try:
        array = np.asarray(audio)
    except (ValueError, TypeError, RuntimeError) as error:
        raise AudioError(f"no array of numbers ({error})", subject=name) from None
    kind = array.dtype
    if isinstance(audio, np.ma.MaskedArray):
        raise AudioError(f"{name} {_is(name)} masked in places; fill them first")
    if kind.kind == "f":
        return Samples(_floats(array), lambda out: out.astype(kind), 0.0)
    if kind.kind not in "iu":
        raise AudioError(f"{name} {_is(name)} of dtype {kind}, must be floating-point or integer")
    middle, scale = _range(kind.itemsize * 8, signed=kind.kind == "i")
    return Samples(
        (array.astype(np.float64) - middle) / scale,
        lambda out: _whole(out, middle, scale).astype(kind),
        1 / scale,
    )


def _of_tensor(audio: "torch.Tensor", name: str) -> Samples:
    import torch

    kind, device = audio.dtype, audio.device
    if device.type == "meta" or audio.layout != torch.strided or audio.is_quantized:
        what = "on the meta device" if device.type == "meta" else f"a tensor of {audio.layout} and {kind}"
        raise AudioError(f"{name} {_is(name)} {what}: an ordinary tensor is wanted")
    if kind == torch.bool or kind.is_complex:
        raise AudioError(f"{name} {_is(name)} of dtype {kind}, must be floating-point or integer")
    if kind.is_floating_point:
        exact = torch.float64 if kind == torch.float64 else torch.float32
        samples = _floats(audio.detach().to("cpu", exact).numpy())
        return Samples(samples, lambda out: torch.from_numpy(out.copy()).to(device, kind), 0.0)
    limits = torch.iinfo(kind)
    middle, scale = _range(limits.bits, signed=limits.min < 0)
    samples = (audio.detach().to("cpu", torch.float64).numpy() - middle) / scale
    return Samples(samples, lambda out: torch.from_numpy(_whole(out, middle, scale)).to(device, kind), 1 / scale)


def _floats(array: NDArray[Any]) -> Floats:
    exact: Floats = array.astype(np.float32) if array.dtype.itemsize <= 4 else array.astype(np.float64)
    return exact


def _range(bits: int, *, signed: bool) -> tuple[float, float]:
    """The values of integers with so many bits for silence and for full scale above it."""
    scale = 2.0 ** (bits - 1)
    return (0.0 if signed else scale), scale


def _whole(out: Audio, middle: float, scale: float) -> NDArray[np.float64]:
    """The nearest integers, clipped to the range."""
    highest = scale - max(1.0, float(np.spacing(scale)))  # of 64 bits, the last that a float has
    return np.clip(np.round(out.astype(np.float64) * scale), -scale, highest) + middle
