"""Segments of degraded and clean speech for training: a batch is a pure function of (seed, step)."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import gcd
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor

from twostage.audio import sound_files
from twostage.audio.levels import LEVEL, active_level
from twostage.audio.resampling import cut
from twostage.audio.speech import without_drift
from twostage.data.aligned_pair import Alignment, read_mono
from twostage.data.gate import gate
from twostage.data.manifest import Entry
from twostage.data.noise import looped, noisy, pink
from twostage.data.sensors import Sensor, load_sensor
from twostage.data.simulator import seeded, simulate
from twostage.data.spectra import Floats, octaves, smooth_curve
from twostage.utils.errors import ConfigError, DataError


class Pair(NamedTuple):
    """Aligned degraded and clean speech, (B, 1, T) each; with an air microphone, degraded is (B, 2, T), bone, air."""

    degraded: Tensor
    clean: Tensor


@dataclass(frozen=True)
class PairConfig:
    """How segments are drawn and varied. Levels and equalization in dB."""

    segment_length: int = 32768  # samples
    sample_rate: int = 16000  # Hz
    sensors: tuple[str, ...] = ("throat",)  # presets or YAML files that degrade clean speech; empty: not degraded
    sensor_weights: tuple[float, ...] = ()  # relative frequency of each; empty: equal
    real_fraction: float = 0.0  # fraction of a batch drawn from entries with both channels
    simulate_on_pairs: bool = False  # also simulate from the clean channel of pairs
    joint_jitter_db: float = 2.0  # dB: level jitter of both channels together, uniform in +- this
    degraded_jitter_db: float = 1.0  # dB: the same for the degraded channel only
    eq_db: float = 0.0  # dB: standard deviation of a random equalizer on the degraded channel, one octave wide
    eq_prob: float = 0.5  # probability that a segment is equalized
    ambient_prob: float = 0.3  # probability that ambient sound of a simulated segment is a noise file, not pink noise
    ambient_db: tuple[float, float] = (-40.0, -20.0)  # dB: range of its level at the sensor, before its response
    silent_prob: float = 0.0  # probability that the degraded side is silent: vocoders learn to work from mels only
    gate_db: float = 0.0  # dB: maximum attenuation of room noise in clean speech; 0: no gating
    air_snr_db: tuple[float, ...] = ()  # dB: SNR range of a simulated air microphone; empty: no air microphone
    speed: float = 0.0  # maximum relative change of playback speed of both channels, which varies voices and tempo
    cache_gigabytes: float = 2.0  # GB of sound kept in memory, with 16 bits per sample

    def __post_init__(self) -> None:
        if self.segment_length < 1 or self.sample_rate < 1:
            raise ConfigError(
                f"data.segment_length and data.sample_rate must be positive: {self.segment_length}, {self.sample_rate}"
            )
        for name in ("real_fraction", "eq_prob", "ambient_prob", "silent_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.{name} is {getattr(self, name)}, must lie between 0 and 1")
        if not 0 <= self.speed < 1 or self.gate_db < 0:
            raise ConfigError(
                f"data.speed must be 0 to below 1, data.gate_db not negative: {self.speed}, {self.gate_db}"
            )
        if self.air_snr_db and (len(self.air_snr_db) != 2 or not self.air_snr_db[0] <= self.air_snr_db[1]):
            raise ConfigError(f"data.air_snr_db is {list(self.air_snr_db)}, must be [lowest, highest] or []")
        if self.sensor_weights and len(self.sensor_weights) != len(self.sensors):
            raise ConfigError(
                f"data.sensor_weights has {len(self.sensor_weights)} values, data.sensors {len(self.sensors)}"
            )
        if any(w < 0 for w in self.sensor_weights) or (self.sensor_weights and not any(self.sensor_weights)):
            raise ConfigError(f"data.sensor_weights is {self.sensor_weights}, must be positive")

    @property
    def channels(self) -> int:
        """The channels of the degraded side: bone, or bone and air."""
        return 2 if self.air_snr_db else 1


class _Cached(NamedTuple):
    """A recording (T,) in 16 bits, scaled to its peak, so that a quiet or a loud one loses nothing that is audible."""

    samples: NDArray[np.int16]
    scale: np.float32

    @classmethod
    def of(cls, audio: Floats) -> "_Cached":
        scale = np.float32(max(float(np.abs(audio).max(initial=0.0)), 1e-9) / (2**15 - 1))
        return cls(np.rint(audio / scale).astype(np.int16), scale)


@dataclass
class Cache:
    """Caches sound files at one sample rate and their active levels, as 16-bit samples, up to a limit of memory."""

    sample_rate: int
    room: float  # bytes
    gate_db: float = 0.0
    _samples: dict[str, _Cached] = field(default_factory=dict)
    _levels: dict[str, tuple[int, float]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def describe(self, path: str) -> tuple[int, float]:
        """Length in samples and active level in dB of the first channel of a file."""
        with self._lock:
            if path not in self._levels:
                self._load(path)
            return self._levels[path]

    def segment(self, path: str, start: int, samples: int) -> Floats:
        """Samples (samples,) from ``start``, which may lie before the file; zeros beyond either end."""
        length, _ = self.describe(path)
        cached = self._samples.get(path)
        if cached is not None:
            return cut(cached.samples, start, samples) * cached.scale
        first, last = max(0, start), min(length, start + samples)
        part = self._read(path, first, last) if last > first else np.zeros(0, np.float32)
        return cut(part, start - first, samples)

    def _load(self, path: str) -> None:
        mono = self._whole(path)
        self._levels[path] = len(mono), active_level(mono, self.sample_rate)
        if 2 * len(mono) <= self.room:
            self.room -= 2 * len(mono)
            self._samples[path] = _Cached.of(mono)

    def _whole(self, path: str) -> Floats:
        mono = read_mono(path, self.sample_rate)
        return gate(mono, self.sample_rate, self.gate_db) if self.gate_db else mono

    def _read(self, path: str, first: int, last: int) -> Floats:
        if self.gate_db:  # the noise is measured over the whole file
            return self._whole(path)[first:last]
        rate = sound_files.info(path).sample_rate
        # with a second before and after, so that the high-pass filter has settled as in the whole file; from a position
        # that is a whole sample of the file
        step = self.sample_rate // gcd(rate, self.sample_rate)
        padded_first, padded_last = max(0, first - self.sample_rate) // step * step, last + self.sample_rate
        start, stop = padded_first * rate // self.sample_rate, -(-padded_last * rate // self.sample_rate)
        audio, _ = sound_files.read(path, start=start, frames=stop - start)
        part = sound_files.resample(without_drift(audio[0], rate), rate, self.sample_rate)
        return sound_files.match_length(part[first - padded_first :], last - first)


class PairDataset:
    """Draws segments of pairs, real or simulated, from the entries of manifests.

    With ``air_snr_db``, an air microphone is simulated from the clean side. If the ambient sound of a simulated bone
    sensor comes from the noise folder, the air microphone gets the same noise.

    Entries with both channels are real pairs; entries with clean speech only are degraded by the sensors. Both channels
    are scaled to LEVEL, according to the level of the whole file or, for simulated ones, that of their source.
    ``noise``: files of ambient sound for the simulator and the air microphone.
    """

    def __init__(self, entries: Sequence[Entry], config: PairConfig, *, noise: Sequence[str] = ()) -> None:
        self.config = config
        self.real = [entry for entry in entries if entry.paired]
        unpaired = [entry for entry in entries if entry.clean and not entry.paired]
        self.clean = unpaired + self.real if config.simulate_on_pairs or not unpaired else unpaired
        if config.real_fraction > 0 and not self.real:
            raise DataError(
                f"data.real_fraction is {config.real_fraction}, but no entry has both a clean and a degraded file"
            )
        if config.real_fraction < 1 and not self.clean:
            raise DataError("no entry has a clean file")
        self.noise = sorted(noise)
        self.sensors: list[Sensor] = [load_sensor(name) for name in config.sensors]
        weights = np.array(config.sensor_weights or [1.0] * len(self.sensors))
        self._weights = weights / weights.sum() if len(weights) else weights
        limit = config.cache_gigabytes * 2**29  # half of it for each
        self._clean, self._degraded = Cache(config.sample_rate, limit, config.gate_db), Cache(config.sample_rate, limit)
        self._clean_cumulative, self._real_cumulative = _cumulative_seconds(self.clean), _cumulative_seconds(self.real)

    def check_delays(self) -> None:
        """Raise DataError that names the pair if its delay leaves nothing in common: its segments would be silent."""
        for entry in self.real:
            if entry.delay and entry.clean and entry.degraded:
                lengths = (self._length(path) for path in (entry.clean, entry.degraded))
                Alignment.of(entry, self.config.sample_rate).shared(*lengths)

    def _length(self, path: str) -> int:
        info = sound_files.info(path)
        return sound_files.resampled_length(info.frames, info.sample_rate, self.config.sample_rate)

    def item(self, rng: np.random.Generator, *, real: bool) -> tuple[Floats, Floats]:
        """One segment: degraded (C, T), bone first, and clean (1, T), float32."""
        degraded, clean, ambient = self._recorded(rng) if real else self._simulated(rng)
        config = self.config
        if rng.random() < config.eq_prob and config.eq_db > 0:
            degraded = equalize(degraded, config.sample_rate, config.eq_db, rng)
        joint = rng.uniform(-config.joint_jitter_db, config.joint_jitter_db)
        independent = rng.uniform(-config.degraded_jitter_db, config.degraded_jitter_db)
        channels = [_amplified(degraded, joint + independent)]
        if config.air_snr_db:  # drawn last, so that the other draws do not depend on it
            independent = rng.uniform(-config.degraded_jitter_db, config.degraded_jitter_db)
            channels.append(_amplified(self._air(clean, ambient, rng), joint + independent))
        if config.silent_prob and rng.random() < config.silent_prob:
            channels = [np.zeros_like(channel) for channel in channels]
        return np.stack(channels), _amplified(clean, joint)[None]

    def batch(self, size: int, seed: int, step: int, *, rank: int = 0, world: int = 1) -> Pair:
        """Batch number ``step``; with several ranks, the part of each in a joint batch of ``size * world``."""
        offset = seeded(seed, "share", step).random()
        items = []
        for index in range(rank * size, (rank + 1) * size):
            # in a joint batch, the integer part increases real_fraction * (size * world) times, +-1
            count = [int(np.floor((index + step_up) * self.config.real_fraction + offset)) for step_up in (0, 1)]
            items.append(self.item(seeded(seed, step, index), real=count[1] > count[0]))
        degraded, clean = (torch.from_numpy(np.stack(side)) for side in zip(*items, strict=True))
        return Pair(degraded, clean)

    def _recorded(self, rng: np.random.Generator) -> tuple[Floats, Floats, None]:
        entry = self.real[_pick(self._real_cumulative, rng)]
        assert entry.clean is not None  # true of all in `real`
        assert entry.degraded is not None
        alignment = Alignment.of(entry, self.config.sample_rate)
        first, last = alignment.shared(self._clean.describe(entry.clean)[0], self._degraded.describe(entry.degraded)[0])
        rate, samples = self._playback_rate(rng)
        start = first + _start(last - first, samples, rng)
        clean = alignment.clean_segment(partial(_leveled, self._clean, entry.clean), start, samples)
        read_degraded = partial(_leveled, self._degraded, entry.degraded)
        degraded = alignment.degraded_segment(read_degraded, start, samples)
        return self._at_sample_rate(degraded, rate), self._at_sample_rate(clean, rate), None

    def _simulated(self, rng: np.random.Generator) -> tuple[Floats, Floats, Floats | None]:
        """Degraded and clean speech, and the ambient sound if it is a noise file."""
        entry = self.clean[_pick(self._clean_cumulative, rng)]
        assert entry.clean is not None  # true of all in `clean`
        rate, samples = self._playback_rate(rng)
        start = _start(self._clean.describe(entry.clean)[0], samples, rng)
        clean = self._at_sample_rate(_leveled(self._clean, entry.clean, start, samples), rate)
        if not self.sensors:
            return clean, clean, None
        sensor = self.sensors[int(rng.choice(len(self.sensors), p=self._weights))]
        ambient = self._ambient(rng)
        degraded = simulate(clean, self.config.sample_rate, sensor, rng, level=LEVEL, ambient=ambient)
        return degraded, clean, ambient[0] if ambient else None

    def _air(self, clean: Floats, ambient: Floats | None, rng: np.random.Generator) -> Floats:
        """Clean speech (T,) at LEVEL in noise, ``ambient`` or another segment; the sum has the level of the speech."""
        lowest, highest = self.config.air_snr_db
        snr = rng.uniform(lowest, highest)
        noise = self._noise(rng) if ambient is None else ambient
        level_increase = 10 * np.log10(1 + 10 ** (-snr / 10))
        return _amplified(noisy(clean, noise, self.config.sample_rate, snr, level=LEVEL), -level_increase)

    def _noise(self, rng: np.random.Generator) -> Floats:
        samples = self.config.segment_length
        if not self.noise:
            return pink(samples, self.config.sample_rate, rng)
        path = self.noise[int(rng.integers(len(self.noise)))]
        length, _ = self._degraded.describe(path)
        if length >= samples:
            return self._degraded.segment(path, _start(length, samples, rng), samples)
        return looped(self._degraded.segment(path, 0, length), samples, int(rng.integers(length)))

    def _playback_rate(self, rng: np.random.Generator) -> tuple[int, int]:
        """The sample rate in Hz at which a segment is read to change its speed, and the samples that it then needs."""
        rate = round(self.config.sample_rate * (1 + rng.uniform(-self.config.speed, self.config.speed)))
        return rate, -(-self.config.segment_length * rate // self.config.sample_rate)

    def _at_sample_rate(self, segment: Floats, rate: int) -> Floats:
        if rate == self.config.sample_rate:
            return segment
        return sound_files.match_length(
            sound_files.resample(segment, rate, self.config.sample_rate), self.config.segment_length
        )

    def _ambient(self, rng: np.random.Generator) -> tuple[Floats, float] | None:
        if not self.noise or rng.random() >= self.config.ambient_prob:
            return None
        path = self.noise[int(rng.integers(len(self.noise)))]
        start = _start(self._degraded.describe(path)[0], self.config.segment_length, rng)
        return self._degraded.segment(path, start, self.config.segment_length), rng.uniform(*self.config.ambient_db)


def batches(
    dataset: PairDataset, batch: int, seed: int, start: int = 0, *, rank: int = 0, world: int = 1, prefetch: int = 4
) -> Generator[Pair, None, None]:
    """Endless batches from number ``start``; a thread prepares ``prefetch`` of them until the generator is closed."""
    pool = ThreadPoolExecutor(1, "pairs")
    pending: deque[Future[Pair]] = deque()
    step = start
    try:
        while True:
            while len(pending) < max(1, prefetch):
                pending.append(pool.submit(dataset.batch, batch, seed, step, rank=rank, world=world))
                step += 1
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def equalize(signal: Floats, sample_rate: int, spread_db: float, rng: np.random.Generator) -> Floats:
    """Filter (T,) with a random smooth zero-phase response of standard deviation ``spread_db``."""
    size = fft.next_fast_len(len(signal), real=True)
    spectrum = fft.rfft(signal, size)
    coarse = np.linspace(0, sample_rate / 2, 257)
    response = spread_db * smooth_curve(octaves(coarse), rng)
    fine = np.interp(np.linspace(0, sample_rate / 2, len(spectrum)), coarse, response).astype(np.float32)
    return fft.irfft(spectrum * 10 ** (fine / 20), size)[: len(signal)].astype(np.float32)


def _cumulative_seconds(entries: Sequence[Entry]) -> Floats:
    """Cumulative durations of entries, for draws in which every second is equally likely."""
    return np.cumsum([entry.seconds for entry in entries]) if entries else np.zeros(0)


def _pick(cumulative: Floats, rng: np.random.Generator) -> int:
    return min(int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")), len(cumulative) - 1)


def _start(length: int, samples: int, rng: np.random.Generator) -> int:
    """A random start of a segment; before the file if the file is shorter than the segment."""
    return int(rng.integers(min(0, length - samples), max(0, length - samples) + 1))


def _leveled(cache: Cache, path: str, start: int, samples: int) -> Floats:
    """A segment scaled so that its file has LEVEL; silent files are not changed."""
    segment, level = cache.segment(path, start, samples), cache.describe(path)[1]
    return _amplified(segment, LEVEL - level) if np.isfinite(level) else segment


def _amplified(signal: Floats, decibels: float) -> Floats:
    return signal * np.float32(10 ** (decibels / 20))
