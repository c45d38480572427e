"""Objective scores of an estimate of clean speech: pure functions of (T,) arrays.

The scores in ``METRICS`` compare with the clean speech; those in ``NO_REFERENCE`` use the estimate alone. Every score
is computed at 16 kHz, for which wide-band PESQ, the bands and the frames are defined. Arrays of another ``sample_rate``
are resampled first, so that scores of models with different rates are comparable. Content above 8 kHz is not assessed.
Every score is a float. A pair that cannot be scored (silence, too short, not finite) gives NaN and a ``MetricWarning``
with the reason; ``score`` returns all scores together with the reasons. The packages behind them are the ``eval``
extra.
"""

import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from twostage.audio.levels import rms
from twostage.audio.sound_files import resample
from twostage.evaluation import speech_quality
from twostage.models.features import LogMel, MelConfig, Stft
from twostage.utils.errors import DataError, TwoStageError

Array = NDArray[np.float32]


class Metric(Protocol):
    """A score of an estimate against a reference, (T,) each, at ``sample_rate``."""

    def __call__(self, reference: Array, estimate: Array, sample_rate: int = ...) -> float: ...


class NoReference(Protocol):
    """A score of an estimate (T,) at ``sample_rate``, without a reference."""

    def __call__(self, estimate: Array, sample_rate: int = ...) -> float: ...


SAMPLE_RATE = 16000  # Hz, at which every score is computed
RMS = 0.05  # -26 dBFS: level to which signals are aligned, so that floors mean the same in every file
SILENCE = 1e-6  # RMS, below the resolution of 16 bits
SHORTEST = 0.5  # seconds: minimum length for scores without a reference
DB = 10 / np.log(10)  # from a difference of natural-log powers to dB


class MetricWarning(UserWarning):
    """A score is NaN; the message says which score and why."""


class Unscorable(Exception):
    """The reason why a pair of signals has no score. Public functions turn it into NaN."""


def _nan_if_unscorable(metric: Callable[[Array, Array], float]) -> Metric:
    """Turn a metric of arrays at SAMPLE_RATE into one of arrays at any rate, which is NaN if there is no score."""

    @wraps(metric)
    def scored(reference: Array, estimate: Array, sample_rate: int = SAMPLE_RATE) -> float:
        try:
            _check(reference, estimate)
            return float(metric(*at_rate_of_scores(reference, estimate, sample_rate)))
        except Unscorable as reason:
            warnings.warn(f"{metric.__name__}: {reason}", MetricWarning, stacklevel=2)
            return float("nan")

    return scored


def _check(reference: Array, estimate: Array) -> None:
    if reference.ndim != 1 or reference.shape != estimate.shape:
        raise ValueError(f"metrics need two (T,) arrays of one length, got {reference.shape} and {estimate.shape}")
    for name, audio in ("reference", reference), ("estimate", estimate):
        _check_one(name, audio)


def _check_one(name: str, audio: Array) -> None:
    if not len(audio):
        raise Unscorable("there are no samples")
    if not np.isfinite(audio).all():
        raise Unscorable(f"the {name} has NaN or infinite samples")
    if rms(audio) < SILENCE:
        raise Unscorable(f"the {name} is silent")


def at_rate_of_scores(reference: Array, estimate: Array, sample_rate: int) -> tuple[Array, Array]:
    """Resample both (T,) to SAMPLE_RATE if they have another rate."""
    if sample_rate == SAMPLE_RATE:
        return reference, estimate
    reference_16k, estimate_16k = (resample(audio, sample_rate, SAMPLE_RATE) for audio in (reference, estimate))
    return reference_16k, estimate_16k


def missing_package(name: str) -> str | None:
    """The package that the metric ``name`` needs and that is not installed, if there is one."""
    return next((package for package in PACKAGES.get(name, ()) if find_spec(package) is None), None)


def require_packages(names: Iterable[str]) -> None:
    """Raise TwoStageError, which says what to install, if one of the metrics is not available."""
    for package in filter(None, map(missing_package, names)):
        raise _missing(package)


def _missing(package: str) -> TwoStageError:
    return TwoStageError(f"the package {package} is not installed; scores need it: pip install 'twostage[eval]'")


@_nan_if_unscorable
def pesq_wb(reference: Array, estimate: Array) -> float:
    """Wide-band PESQ, MOS-LQO of 1.0 to 4.64 (ITU-T P.862.2); beyond 20 s, the mean over equal parts with speech."""
    # the reference code crashes with more than 50 utterances, which are at least 0.2 s of speech and 0.2 s of pause
    parts = -(-len(reference) // (20 * SAMPLE_RATE))
    scores, reasons = [], []
    for x, y in zip(np.array_split(reference, parts), np.array_split(estimate, parts), strict=True):
        try:
            scores.append(_pesq(x, y))
        except Unscorable as reason:
            reasons.append(reason)
    if not scores:
        raise reasons[0]
    return float(np.mean(scores))


def _pesq(reference: Array, estimate: Array) -> float:
    try:
        import pesq
    except ImportError:
        raise _missing("pesq") from None
    _check(reference, estimate)
    try:
        return float(pesq.pesq(SAMPLE_RATE, _pcm(reference), _pcm(estimate), "wb"))
    except (pesq.PesqError, ValueError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise Unscorable(reason.decode() if isinstance(reason, bytes) else str(reason)) from error


def _pcm(audio: Array) -> Array:
    # the package converts to 16 bits and would wrap around beyond full scale. PESQ aligns levels itself
    return (audio / max(1.0, float(np.abs(audio).max()))).astype(np.float32)


@_nan_if_unscorable
def stoi(reference: Array, estimate: Array) -> float:
    """Short-time objective intelligibility, at most 1 (Taal et al., 2011)."""
    return _stoi(reference, estimate, extended=False)


@_nan_if_unscorable
def estoi(reference: Array, estimate: Array) -> float:
    """Extended STOI, at most 1 (Jensen and Taal, 2016)."""
    return _stoi(reference, estimate, extended=True)


def _stoi(reference: Array, estimate: Array, *, extended: bool) -> float:
    try:
        import pystoi
    except ImportError:
        raise _missing("pystoi") from None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            # float64: the noise that the package adds against rows of zeros is too small for float32
            return float(pystoi.stoi(reference.astype(np.float64), estimate.astype(np.float64), SAMPLE_RATE, extended))
        except (RuntimeWarning, ValueError, IndexError) as error:
            raise Unscorable("fewer than 30 frames (0.4 s) of speech") from error


@_nan_if_unscorable
def lsd(reference: Array, estimate: Array) -> float:
    """Log-spectral distance, in log10 of power, levels aligned; 0 is equal.

    Root of the mean square over bins, mean over frames; 2048-point frames, hop 512 (Wang and Wang, "Towards Robust
    Speech Super-Resolution", TASLP 2021).
    """
    reference_log, estimate_log = (_stft()(_leveled(a)).clamp_min(1e-5).log10() * 2 for a in (reference, estimate))
    if not reference_log.shape[-1]:
        raise Unscorable("too short, less than one frame of 512 samples")
    return float((reference_log - estimate_log).square().mean(-2).sqrt().mean())


@_nan_if_unscorable
def mel_l1(reference: Array, estimate: Array) -> float:
    """Mean absolute difference of natural-log mels (80 bands to 8 kHz), levels aligned; 0 is equal."""
    reference_mel, estimate_mel = (_mel()(_leveled(a)) for a in (reference, estimate))
    if not reference_mel.shape[-1]:
        raise Unscorable("too short, less than one frame of 256 samples")
    return float((reference_mel - estimate_mel).abs().mean())


@_nan_if_unscorable
def mcd(reference: Array, estimate: Array, order: int = 13, floor_db: float = 40.0) -> float:
    """Mel-cepstral distortion in dB: 10 / ln 10 * sqrt(2 * sum of squared differences of coefficients 1 to 13).

    Kubichek, "Mel-cepstral distance measure", 1993. The cepstra are cosine transforms of the log-mels, scaled as in
    log|H| = c0 + sum of c_d cos(d w), so that the value is the RMS difference in dB of two smoothed spectra without
    their levels. Signals are aligned, so no time warping is needed; mean over the frames in which the
    reference's power is at most ``floor_db`` below its loudest.
    """
    reference_mel, estimate_mel = (_mel()(_leveled(a))[0] for a in (reference, estimate))
    if not reference_mel.shape[-1]:
        raise Unscorable("too short, less than one frame of 256 samples")
    bands = reference_mel.shape[0]
    angles = torch.outer(torch.arange(1.0, order + 1), torch.arange(bands) + 0.5) * torch.pi / bands
    power_db = 10 * reference_mel.double().exp().square().sum(0).log10()
    active = power_db > power_db.max() - floor_db
    difference = 2 / bands * angles.cos() @ (reference_mel - estimate_mel)[:, active]
    return float(DB * (2 * difference.square().sum(0)).sqrt().mean())


@_nan_if_unscorable
def si_sdr(reference: Array, estimate: Array) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., 2019). Not meaningful for mel vocoders."""
    x, y = (a.astype(np.float64) - np.mean(a, dtype=np.float64) for a in (reference, estimate))
    energy = float(x @ x)
    if energy == 0:
        raise Unscorable("the reference is constant")
    target = x * (x @ y) / energy
    error = float(np.sum((y - target) ** 2))
    return float(10 * np.log10(max(float(target @ target), 1e-30) / max(error, 1e-30)))


def mos(estimate: Array, sample_rate: int = SAMPLE_RATE) -> float:
    """DistillMOS, a predicted listener rating, 1 to 5; see ``speech_quality``."""
    return _quality("mos", speech_quality.distillmos, estimate, sample_rate)


def dnsmos(estimate: Array, sample_rate: int = SAMPLE_RATE) -> float:
    """Overall quality of DNSMOS P.835, about 1 to 4.2, at level RMS; see ``speech_quality``."""

    def leveled(audio: Array) -> float:
        return speech_quality.dnsmos(_pcm((audio * (RMS / rms(audio))).astype(np.float32)))

    return _quality("dnsmos", leveled, estimate, sample_rate)


def _quality(name: str, model: Callable[[Array], float], estimate: Array, sample_rate: int) -> float:
    if estimate.ndim != 1:
        raise ValueError(f"metrics need (T,) arrays, got {estimate.shape}")
    require_packages([name])
    try:
        _check_one("estimate", estimate)
        if len(estimate) < SHORTEST * sample_rate:
            raise Unscorable(f"too short, less than {SHORTEST} s")
    except Unscorable as reason:
        warnings.warn(f"{name}: {reason}", MetricWarning, stacklevel=3)
        return float("nan")
    return model(estimate if sample_rate == SAMPLE_RATE else resample(estimate, sample_rate, SAMPLE_RATE))


METRICS: dict[str, Metric] = {
    "pesq": pesq_wb, "stoi": stoi, "estoi": estoi, "lsd": lsd, "mel_l1": mel_l1, "mcd": mcd, "si_sdr": si_sdr,
}  # fmt: skip
NO_REFERENCE: dict[str, NoReference] = {"mos": mos, "dnsmos": dnsmos}
NAMES = (*METRICS, *NO_REFERENCE)
HIGHER_IS_BETTER = {name: name in ("pesq", "stoi", "estoi", "si_sdr", "mos", "dnsmos") for name in NAMES}
PACKAGES = {
    "pesq": ("pesq",),
    "stoi": ("pystoi",),
    "estoi": ("pystoi",),
    "mos": ("distillmos", "xls_r_sqa"),
    "dnsmos": ("speechmos", "onnxruntime"),
}


def score(
    reference: Array, estimate: Array, names: Iterable[str] = NAMES, *, sample_rate: int = SAMPLE_RATE
) -> tuple[dict[str, float], list[str]]:
    """Score two aligned (T,) arrays by the named metrics: values (NaN if there is no score) and the reasons for NaN."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MetricWarning)
        if reference.shape == estimate.shape and np.isfinite(reference).all() and np.isfinite(estimate).all():
            reference, estimate = at_rate_of_scores(reference, estimate, sample_rate)  # once for all metrics
        values = {name: _score(name, reference, estimate) for name in names}
    return values, [str(w.message) for w in caught if issubclass(w.category, MetricWarning)]


def _score(name: str, reference: Array, estimate: Array) -> float:
    return NO_REFERENCE[name](estimate) if name in NO_REFERENCE else METRICS[name](reference, estimate)


def band_errors(
    reference: Array, estimate: Array, width: float = 500.0, *, sample_rate: int = SAMPLE_RATE
) -> NDArray[np.float64]:
    """Mean absolute difference in dB of the power in bands of ``width`` Hz, levels aligned: (8000 / width,).

    Frames are those of ``lsd``. Levels are clamped to 60 dB below the loudest band of either signal. NaN if a signal is
    silent or shorter than a frame.
    """
    bands = round(SAMPLE_RATE / 2 / width)
    reference, estimate = at_rate_of_scores(reference, estimate, sample_rate)
    if min(rms(reference), rms(estimate)) == 0 or len(reference) < 512:
        return np.full(bands, np.nan)
    levels = []
    for audio in (reference, estimate):
        power = _stft()(_leveled(audio))[0].square()[1:]  # without 0 Hz: 1024 bins, divisible by many numbers of bands
        level = 10 * power.unflatten(0, (bands, -1)).sum(1).log10()
        levels.append(level.clamp_min(float(level.max()) - 60))
    return (levels[0] - levels[1]).abs().mean(-1).double().numpy()


def _leveled(audio: Array) -> torch.Tensor:
    return torch.from_numpy((audio * (RMS / rms(audio))).astype(np.float32))[None, None]


@lru_cache(1)
def _mel() -> LogMel:
    return LogMel(MelConfig())


@lru_cache(1)
def _stft() -> Stft:
    return Stft(2048, 512)


class Alignment(NamedTuple):
    """Two (T,) arrays of equal length, and the samples by which the estimate was late and longer than the reference."""

    reference: Array
    estimate: Array
    delay: int
    longer: int


def align(
    reference: Array, estimate: Array, max_seconds: float = 0.02, *, sample_rate: int = SAMPLE_RATE, sure: float = 0.5
) -> Alignment:
    """Compensate differences in length and delay of at most ``max_seconds``; ``DataError`` if lengths differ by more.

    The delay is the peak of the magnitude of the normalized cross-correlation of the waveforms, exact to the sample.
    For signals with a different phase, as from a mel vocoder, peaks at multiples of the pitch period are meaningless,
    but these stay below ``sure``. In this case the envelopes of mel bands are correlated, which is accurate to a
    millisecond, and only a delay of two or more is compensated.
    """
    max_lag, longer = round(max_seconds * sample_rate), len(estimate) - len(reference)
    if abs(longer) > max_lag:
        raise DataError(f"lengths differ by {longer / sample_rate:+.3f} s, more than {max_seconds:g} s can be aligned")
    delay = _delay(reference, estimate, max_lag, sure, sample_rate)
    start, length = max(0, -delay), min(len(reference), len(estimate) - delay)
    return Alignment(reference[start:length], estimate[start + delay : length + delay], delay, longer)


def _delay(reference: Array, estimate: Array, max_lag: int, sure: float, sample_rate: int) -> int:
    length = min(len(reference), len(estimate))
    reference, estimate, max_lag = reference[:length], estimate[:length], min(max_lag, length // 2)
    if not min(rms(reference), rms(estimate)) > SILENCE or not np.isfinite([reference, estimate]).all():
        return 0
    size = 1 << (2 * length).bit_length()
    spectrum = np.fft.rfft(estimate, size) * np.fft.rfft(reference, size).conj()
    lags = np.arange(-max_lag, max_lag + 1)
    energy = rms(reference) * rms(estimate) * length
    correlation = np.abs(np.fft.irfft(spectrum, size)[lags]) / energy
    best = int(np.argmax(correlation))
    if correlation[best] >= sure:
        return int(lags[best])
    step = sample_rate // 1000
    milliseconds = _envelope_delay(_envelopes(reference, step), _envelopes(estimate, step), max_lag // step, sure)
    return milliseconds * step if abs(milliseconds) > 1 else 0


def _envelopes(audio: Array, step: int) -> torch.Tensor:
    """Compressed envelopes of 24 mel bands (F, L), a frame every ``step`` samples, without their means over time."""
    mel = _band_mel(step)(_leveled(audio))[0].exp()
    envelopes = (mel / mel.amax(1, keepdim=True) + 0.01).log()
    return envelopes - envelopes.mean(1, keepdim=True)


def _envelope_delay(reference: torch.Tensor, estimate: torch.Tensor, max_lag: int, sure: float) -> int:
    frames = reference.shape[1]
    if frames <= 2 * max_lag:
        return 0
    peaks = {}
    for lag in range(-max_lag, max_lag + 1):
        x = reference[:, max(0, -lag) : frames - max(0, lag)]
        y = estimate[:, max(0, lag) : frames - max(0, -lag)]
        peaks[lag] = float((x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-9))
    best = max(peaks, key=peaks.__getitem__)
    return best if peaks[best] >= sure else 0


@lru_cache(4)
def _band_mel(step: int) -> LogMel:
    return LogMel(MelConfig(step * 1000, 16 * step, 16 * step, step, 24, fmin=0.0, fmax=step * 500.0))
