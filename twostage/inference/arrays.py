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

PAIR = 2  # channels: up to so many may outnumber the samples; with more, the axes have been swapped

Floats = NDArray[np.float32] | NDArray[np.float64]


class Samples(NamedTuple):
    """Samples (T,) or (C, T) at full scale 1, in their original precision, with their original type, dtype and device.

    ``step`` is the difference between two adjacent values of an integer type; 0 for floats.
    """

    audio: Floats
    give_back: Callable[[Audio], Any]
    step: float


def check_sample_rate(sample_rate: Any) -> int:
    """Check a sample rate in Hz against the range that is allowed for files. Raises AudioError."""
    is_number = isinstance(sample_rate, int | float | np.integer | np.floating) and not isinstance(sample_rate, bool)
    if not (is_number and SLOWEST <= sample_rate <= FASTEST and sample_rate == int(sample_rate)):
        requirement = f"must be a whole number of Hz from {SLOWEST} to {FASTEST}"
        raise AudioError(f"sample_rate is {sample_rate!r}, {requirement}")
    return int(sample_rate)


def wanted_shape(shape: tuple[int, ...]) -> str:
    """A description of the expected shape if it is not (T,) or (C, T); empty otherwise."""
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] == 0):
        return "(T,) or (C, T)"
    return "(C, T): there are more channels than samples" if len(shape) == 2 and shape[0] > max(PAIR, shape[1]) else ""


def to_samples(audio: Any, *, name: str = "audio", wanted: Callable[[tuple[int, ...]], str] = wanted_shape) -> Samples:
    """Convert input to floats: integers at their full scale; for unsigned integers, mid-range is silence.

    Raises AudioError for any other dtype and for a shape to which ``wanted`` objects by returning the expected shape.
    """
    samples = _of_tensor(audio, name) if is_tensor(audio) else _of_array(audio, name)
    shape = tuple(samples.audio.shape)
    if expected := wanted(shape):
        raise AudioError(f"{name} {_has(name)} shape {shape}, wanted {expected}")
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
    dtype = array.dtype
    if isinstance(audio, np.ma.MaskedArray):
        raise AudioError(f"{name} {_is(name)} masked; fill the masked values first")
    if dtype.kind == "f":
        return Samples(_floats(array), lambda out: out.astype(dtype), 0.0)
    if dtype.kind not in "iu":
        raise AudioError(f"{name} {_is(name)} of dtype {dtype}, must be floating-point or integer")
    zero, scale = _range(dtype.itemsize * 8, signed=dtype.kind == "i")
    return Samples(
        (array.astype(np.float64) - zero) / scale,
        lambda out: _quantized(out, zero, scale).astype(dtype),
        1 / scale,
    )


def _of_tensor(audio: "torch.Tensor", name: str) -> Samples:
    import torch

    dtype, device = audio.dtype, audio.device
    if device.type == "meta" or audio.layout != torch.strided or audio.is_quantized:
        description = "on the meta device" if device.type == "meta" else f"a tensor of {audio.layout} and {dtype}"
        raise AudioError(f"{name} {_is(name)} {description}, must be an ordinary tensor")
    if dtype == torch.bool or dtype.is_complex:
        raise AudioError(f"{name} {_is(name)} of dtype {dtype}, must be floating-point or integer")
    if dtype.is_floating_point:
        precision = torch.float64 if dtype == torch.float64 else torch.float32
        samples = _floats(audio.detach().to("cpu", precision).numpy())
        return Samples(samples, lambda out: torch.from_numpy(out.copy()).to(device, dtype), 0.0)
    limits = torch.iinfo(dtype)
    zero, scale = _range(limits.bits, signed=limits.min < 0)
    samples = (audio.detach().to("cpu", torch.float64).numpy() - zero) / scale
    return Samples(samples, lambda out: torch.from_numpy(_quantized(out, zero, scale)).to(device, dtype), 1 / scale)


def _floats(array: NDArray[Any]) -> Floats:
    floats: Floats = array.astype(np.float32) if array.dtype.itemsize <= 4 else array.astype(np.float64)
    return floats


def _range(bits: int, *, signed: bool) -> tuple[float, float]:
    """The value of silence and the full scale relative to it, of integers with so many bits."""
    scale = 2.0 ** (bits - 1)
    return (0.0 if signed else scale), scale


def _quantized(out: Audio, zero: float, scale: float) -> NDArray[np.float64]:
    """The nearest integers, clipped to the range."""
    highest = scale - max(1.0, float(np.spacing(scale)))  # for 64 bits, the highest that a float represents
    return np.clip(np.round(out.astype(np.float64) * scale), -scale, highest) + zero
