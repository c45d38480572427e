"""Segments of degraded and clean speech for training: a batch is a pure function of (seed, step)."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor

from twostage.audio import sound_files
from twostage.audio.levels import LEVEL, active_level
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
    """Degraded and clean speech, in step to the sample: (B, 1, T) each; degraded (B, 2, T), bone and air, with both."""

    degraded: Tensor
    clean: Tensor


@dataclass(frozen=True)
class PairConfig:
    """How segments are drawn and varied. Levels and equalization in dB."""

    segment_length: int = 32768  # samples
    sample_rate: int = 16000  # Hz
    sensors: tuple[str, ...] = ("throat",)  # presets or YAML files that clean speech is degraded with; none: it is not
    sensor_weights: tuple[float, ...] = ()  # how often each; empty: alike
    real_fraction: float = 0.0  # of a batch, drawn from entries that have both channels
    simulate_on_pairs: bool = False  # simulate from the clean channel of pairs too
    joint_jitter_db: float = 2.0  # uniform, each way, of both channels
    degraded_jitter_db: float = 1.0  # the same, of the degraded channel alone
    eq_db: float = 0.0  # deviation of a random equalizer on the degraded channel, an octave wide
    eq_prob: float = 0.5  # of a segment, to be equalized
    ambient_prob: float = 0.3  # of a simulated segment, to hear a file of the noise folder instead of pink noise
    ambient_db: tuple[float, float] = (-40.0, -20.0)  # its level range after leaking in, before the sensor's response
    silent_prob: float = 0.0  # of a segment, to be digital silence on the degraded side: vocoders then hear mels alone
    gate_db: float = 0.0  # by how much the room's noise is taken off clean speech, at most; 0 = not
    air_snr_db: tuple[float, ...] = ()  # range of an air microphone's, in noise of the folder or pink; none: no air
    speed: float = 0.0  # both channels are played faster or slower by up to this share: other voices, other tempo
    cache_gigabytes: float = 2.0  # sound kept in memory, 16 bits a sample

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


@dataclass
class Cache:
    """Sound files at one sample rate with their active level, kept in memory as 16-bit samples while there is room."""

    sample_rate: int
    room: float  # bytes
    gate_db: float = 0.0
    _kept: dict[str, NDArray[np.int16]] = field(default_factory=dict)
    _levels: dict[str, tuple[int, float]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def describe(self, path: str) -> tuple[int, float]:
        """Length in samples and active level in dB of a file's first channel."""
        with self._lock:
            if path not in self._levels:
                self._load(path)
            return self._levels[path]

    def segment(self, path: str, start: int, samples: int) -> Floats:
        """Samples (samples,) from ``start``, which may lie before the file; zeros beyond either end."""
        length, _ = self.describe(path)
        first, last = max(0, start), min(length, start + samples)
        out = np.zeros(samples, np.float32)
        if last > first:
            kept = self._kept.get(path)
            part = kept[first:last] * np.float32(2**-15) if kept is not None else self._read(path, first, last)
            out[first - start : first - start + len(part)] = part
        return out

    def _load(self, path: str) -> None:
        mono = self._whole(path)
        self._levels[path] = len(mono), active_level(mono, self.sample_rate)
        if 2 * len(mono) <= self.room:
            self.room -= 2 * len(mono)
            self._kept[path] = np.clip(np.rint(mono * 2**15), -(2**15), 2**15 - 1).astype(np.int16)

    def _whole(self, path: str) -> Floats:
        mono = read_mono(path, self.sample_rate)
        return gate(mono, self.sample_rate, self.gate_db) if self.gate_db else mono

    def _read(self, path: str, first: int, last: int) -> Floats:
        if self.gate_db:  # the noise is measured over the whole file
            return self._whole(path)[first:last]
        rate = sound_files.info(path).sample_rate
        # from so far before it, and to so far behind it, that the filter is as in the whole file
        before, after = max(0, first - self.sample_rate), last + self.sample_rate
        start, stop = before * rate // self.sample_rate, -(-after * rate // self.sample_rate)
        sound, _ = sound_files.read(path, start=start, frames=stop - start)
        part = sound_files.resample(without_drift(sound[0], rate), rate, self.sample_rate)
        return sound_files.match_length(part[first - before :], last - first)


class PairDataset:
    """Draws segments of pairs, real or simulated, from the entries of manifests.

    With ``air_snr_db``, an air microphone is simulated from the clean side. If the sound that leaks into a simulated
    bone sensor comes from the noise folder, the air microphone gets the same noise.

    Entries with both channels are real pairs; entries with clean speech alone are degraded by the sensors. Both
    channels are brought to LEVEL, by the level of the whole file or, for simulated ones, by that of their source.
    ``noise``: files of room sound for the simulator and the air microphone.
    """

    def __init__(self, entries: Sequence[Entry], config: PairConfig, *, noise: Sequence[str] = ()) -> None:
        self.config = config
        self.real = [entry for entry in entries if entry.paired]
        alone = [entry for entry in entries if entry.clean and not entry.paired]
        self.clean = alone + self.real if config.simulate_on_pairs or not alone else alone
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
        room = config.cache_gigabytes * 2**29  # half for either channel
        self._clean, self._degraded = Cache(config.sample_rate, room, config.gate_db), Cache(config.sample_rate, room)
        self._clean_odds, self._real_odds = _odds(self.clean), _odds(self.real)

    def check_delays(self) -> None:
        """Raise DataError, which names the pair, if its delay leaves nothing in common, because it would be silence."""
        for entry in self.real:
            if entry.delay and entry.clean and entry.degraded:
                lengths = (self._length(path) for path in (entry.clean, entry.degraded))
                Alignment.of(entry, self.config.sample_rate).shared(*lengths)

    def _length(self, path: str) -> int:
        info = sound_files.info(path)
        return sound_files.resampled_length(info.frames, info.sample_rate, self.config.sample_rate)

    def item(self, rng: np.random.Generator, *, real: bool) -> tuple[Floats, Floats]:
        """One segment: degraded (C, T), bone first, and clean (1, T), float32."""
        degraded, clean, room = self._recorded(rng) if real else self._simulated(rng)
        config = self.config
        if rng.random() < config.eq_prob and config.eq_db > 0:
            degraded = equalize(degraded, config.sample_rate, config.eq_db, rng)
        joint = rng.uniform(-config.joint_jitter_db, config.joint_jitter_db)
        alone = rng.uniform(-config.degraded_jitter_db, config.degraded_jitter_db)
        sides = [_gained(degraded, joint + alone)]
        if config.air_snr_db:  # last, lest it change what is drawn without
            alone = rng.uniform(-config.degraded_jitter_db, config.degraded_jitter_db)
            sides.append(_gained(self._air(clean, room, rng), joint + alone))
        if config.silent_prob and rng.random() < config.silent_prob:
            sides = [np.zeros_like(side) for side in sides]
        return np.stack(sides), _gained(clean, joint)[None]

    def batch(self, size: int, seed: int, step: int, *, rank: int = 0, world: int = 1) -> Pair:
        """Batch number ``step``; with several ranks, each one's part of a joint batch of ``size * world``."""
        offset = seeded(seed, "share", step).random()
        items = []
        for index in range(rank * size, (rank + 1) * size):
            # the integer part rises real_fraction * (size * world) times in a joint batch, give or take one
            count = [int(np.floor((index + more) * self.config.real_fraction + offset)) for more in (0, 1)]
            items.append(self.item(seeded(seed, step, index), real=count[1] > count[0]))
        degraded, clean = (torch.from_numpy(np.stack(side)) for side in zip(*items, strict=True))
        return Pair(degraded, clean)

    def _recorded(self, rng: np.random.Generator) -> tuple[Floats, Floats, None]:
        entry = self.real[_pick(self._real_odds, rng)]
        assert entry.clean is not None  # what `real` is made of
        assert entry.degraded is not None
        alignment = Alignment.of(entry, self.config.sample_rate)
        first, last = alignment.shared(self._clean.describe(entry.clean)[0], self._degraded.describe(entry.degraded)[0])
        rate, samples = self._pace(rng)
        start = first + _start(last - first, samples, rng)
        clean = alignment.clean_segment(partial(_leveled, self._clean, entry.clean), start, samples)
        as_recorded = partial(_leveled, self._degraded, entry.degraded)
        degraded = alignment.degraded_segment(as_recorded, start, samples)
        return self._played(degraded, rate), self._played(clean, rate), None

    def _simulated(self, rng: np.random.Generator) -> tuple[Floats, Floats, Floats | None]:
        """Degraded and clean speech, and the sound of the room, if there is one."""
        entry = self.clean[_pick(self._clean_odds, rng)]
        assert entry.clean is not None  # what `clean` is made of
        rate, samples = self._pace(rng)
        start = _start(self._clean.describe(entry.clean)[0], samples, rng)
        clean = self._played(_leveled(self._clean, entry.clean, start, samples), rate)
        if not self.sensors:
            return clean, clean, None
        sensor = self.sensors[int(rng.choice(len(self.sensors), p=self._weights))]
        ambient = self._ambient(rng)
        degraded = simulate(clean, self.config.sample_rate, sensor, rng, level=LEVEL, ambient=ambient)
        return degraded, clean, ambient[0] if ambient else None

    def _air(self, clean: Floats, room: Floats | None, rng: np.random.Generator) -> Floats:
        """Clean speech (T,) at LEVEL in noise, ``room`` or a segment of a file; the sum has the level of the speech."""
        lowest, highest = self.config.air_snr_db
        snr = rng.uniform(lowest, highest)
        noise = self._noise(rng) if room is None else room
        together = 10 * np.log10(1 + 10 ** (-snr / 10))
        return _gained(noisy(clean, noise, self.config.sample_rate, snr, level=LEVEL), -together)

    def _noise(self, rng: np.random.Generator) -> Floats:
        samples = self.config.segment_length
        if not self.noise:
            return pink(samples, self.config.sample_rate, rng)
        path = self.noise[int(rng.integers(len(self.noise)))]
        length, _ = self._degraded.describe(path)
        if length >= samples:
            return self._degraded.segment(path, _start(length, samples, rng), samples)
        return looped(self._degraded.segment(path, 0, length), samples, int(rng.integers(length)))

    def _pace(self, rng: np.random.Generator) -> tuple[int, int]:
        """The assumed sample rate in Hz of a segment, and the number of samples that it then needs."""
        rate = round(self.config.sample_rate * (1 + rng.uniform(-self.config.speed, self.config.speed)))
        return rate, -(-self.config.segment_length * rate // self.config.sample_rate)

    def _played(self, segment: Floats, rate: int) -> Floats:
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
    """Endless batches from number ``start``, ``prefetch`` of them prepared by a thread; close it to stop the thread."""
    pool = ThreadPoolExecutor(1, "pairs")
    waiting: deque[Future[Pair]] = deque()
    step = start
    try:
        while True:
            while len(waiting) < max(1, prefetch):
                waiting.append(pool.submit(dataset.batch, batch, seed, step, rank=rank, world=world))
                step += 1
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def equalize(signal: Floats, sample_rate: int, spread_db: float, rng: np.random.Generator) -> Floats:
    """Filter (T,) by a random smooth response of deviation ``spread_db``, zero phase."""
    size = fft.next_fast_len(len(signal), real=True)
    spectrum = fft.rfft(signal, size)
    coarse = np.linspace(0, sample_rate / 2, 257)
    response = spread_db * smooth_curve(octaves(coarse), rng)
    fine = np.interp(np.linspace(0, sample_rate / 2, len(spectrum)), coarse, response).astype(np.float32)
    return fft.irfft(spectrum * 10 ** (fine / 20), size)[: len(signal)].astype(np.float32)


def _odds(entries: Sequence[Entry]) -> Floats:
    """Cumulative probabilities of entries, in proportion to their duration: every second is equally likely."""
    return np.cumsum([entry.seconds for entry in entries]) if entries else np.zeros(0)


def _pick(odds: Floats, rng: np.random.Generator) -> int:
    return min(int(np.searchsorted(odds, rng.random() * odds[-1], side="right")), len(odds) - 1)


def _start(length: int, samples: int, rng: np.random.Generator) -> int:
    """The start of a segment; before the file, if the file is shorter."""
    return int(rng.integers(min(0, length - samples), max(0, length - samples) + 1))


def _leveled(cache: Cache, path: str, start: int, samples: int) -> Floats:
    """A segment, brought to LEVEL by the level of its file; silent files stay as they are."""
    segment, level = cache.segment(path, start, samples), cache.describe(path)[1]
    return _gained(segment, LEVEL - level) if np.isfinite(level) else segment


def _gained(signal: Floats, decibels: float) -> Floats:
    return signal * np.float32(10 ** (decibels / 20))
