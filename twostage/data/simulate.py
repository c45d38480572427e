"""Body-conducted speech made from clean speech: pure functions of (audio, rng).

The chain: EBEN's low-pass, the sensor's response with its variation from recording to recording and from moment to
moment, loss of coherence, sounds of the body, saturation, leaked ambient sound, the sensor's noise, the band limit,
level. A `Sensor` holds every number; parts whose numbers are empty, zero or None are left out and cost nothing.
"""

import os
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft, ndimage, signal

from twostage import audio as sound
from twostage.data.spectra import (
    OVERLAP,
    Complex,
    Floats,
    active_frames,
    decibels,
    frame_size,
    istft,
    octaves,
    power,
    smooth_curve,
    smooth_field,
    stft,
    voice_level,
)
from twostage.errors import ConfigError, DataError
from twostage.schema import build

Curve = tuple[float, ...]
CURVES = (
    "response_db",
    "response_spread_db",
    "slope",
    "voice_slope",
    "gain_spread_db",
    "coherence",
    "noise_share",
    "noise_db",
)
MOVING = ("slope", "voice_slope", "gain_spread_db", "coherence")


@dataclass(frozen=True)
class Sensor:
    """Everything the simulator knows of a sensor. Hz, seconds, dB; curves stand on the grid ``frequencies``.

    Levels in dB are relative to the active level of the speech at the sensor.
    """

    # EBEN's low-pass: second order, forward and backward (Hauret et al., "EBEN", ICASSP 2023, section 2); 0 = none
    cutoff: float = 0.0
    q: float = 1.0
    filter_jitter: float = 0.0  # cut-off and q are each multiplied by U(1 - jitter, 1 + jitter)
    # the linear part: magnitude response and its deviation from one recording to the next
    frequencies: Curve = ()
    response_db: Curve = ()
    response_spread_db: Curve = ()
    resonances: tuple[Curve, ...] = ()  # (Hz, q, dB) each
    resonance_jitter: float = 0.1
    # the part that is not a linear filter. Under the skin a band follows less the sound that the mouth gives to it than
    # the voice itself: a dB more of clean speech in the band counts `slope` dB (a filter: 1), a dB more of voice (80 to
    # 500 Hz) counts `voice_slope` dB (a filter: 0)
    slope: Curve = ()
    voice_slope: Curve = ()
    gain_spread_db: Curve = ()  # deviation of slow random gains by band
    gain_seconds: float = 0.1  # over which they stay alike
    coherence: Curve = ()  # magnitude-squared, between clean and simulated speech
    noise_share: Curve = ()  # of the incoherent power: noise in the speech's envelope; the rest is wandering phase
    headroom_db: float | None = None  # soft saturation this far above the active level
    # what is added
    noise_db: Curve = ()  # the sensor's noise, dB a Hz
    noise_spread_db: float = 0.0
    white_noise: float = 0.0  # deviation relative to that of the speech
    ambient_db: float | None = None  # sound of the room that leaks in, through the sensor's response
    heart_db: float | None = None
    thump_db: float | None = None  # peaks of bumps and of the cable
    thumps_per_second: float = 0.3
    breath_db: float | None = None
    # the end of the chain
    band_limit: float = 0.0  # Hz, nothing above; 0 = none
    band_limit_jitter: float = 0.0
    level_jitter_db: float = 0.0  # uniform, each way

    def __post_init__(self) -> None:
        grid = np.asarray(self.frequencies)
        if len(grid) and (len(grid) < 2 or grid[0] < 0 or (np.diff(grid) <= 0).any()):
            raise ConfigError("sensor.frequencies must rise and start at 0 or above, two or more of them")
        for name in CURVES:
            if len(getattr(self, name)) not in (0, len(grid)):
                raise ConfigError(
                    f"sensor.{name} has {len(getattr(self, name))} values, sensor.frequencies {len(grid)}"
                )
        if any(not 0 <= c <= 1 for c in (*self.coherence, *self.noise_share)):
            raise ConfigError("sensor.coherence and sensor.noise_share must lie between 0 and 1")
        if any(len(resonance) != 3 for resonance in self.resonances):
            raise ConfigError("sensor.resonances must be (Hz, q, dB) each")
        for name in ("cutoff", "band_limit", "white_noise", "filter_jitter", "band_limit_jitter", "level_jitter_db"):
            if getattr(self, name) < 0:
                raise ConfigError(f"sensor.{name} is {getattr(self, name)}, must not be negative")
        if self.q <= 0 or self.gain_seconds <= 0:
            raise ConfigError(f"sensor.q and sensor.gain_seconds must be positive: {self.q}, {self.gain_seconds}")


def simulate(
    audio: Floats,
    sample_rate: int,
    sensor: Sensor,
    rng: np.random.Generator,
    *,
    ambient: tuple[Floats, float] | None = None,
) -> Floats:
    """Turn clean speech (T,) into what ``sensor`` would pick up, (T,) float32, without delay.

    ``ambient``: sound of the room (T,) and the dB that it leaks in at; without it, pink noise at ``sensor.ambient_db``.
    """
    clean = np.asarray(audio, np.float32)
    if clean.ndim != 1:
        raise ValueError(f"simulate takes one channel (T,), got {clean.shape}")
    if not clean.any():
        return np.zeros_like(clean)
    speech = low_pass(clean, sample_rate, sensor, rng) if sensor.cutoff else clean
    response = _response(sensor, sample_rate, rng)
    if response is not None or any(getattr(sensor, name) for name in MOVING):
        speech = _body(speech, clean, sample_rate, sensor, response, rng)
    level = 10 ** (sound.active_level(speech, sample_rate) / 20)
    if not np.isfinite(level) or level <= 0:
        return np.zeros_like(clean)
    speech = speech + level * _body_sounds(len(clean), sample_rate, sensor, rng)
    if sensor.headroom_db is not None:
        ceiling = level * 10 ** (sensor.headroom_db / 20)
        speech = ceiling * np.tanh(speech / ceiling)
    speech = _surroundings(speech, level, sample_rate, sensor, response, rng, ambient)
    return (speech * _jitter_gain(sensor.level_jitter_db, rng)).astype(np.float32)


def seeded(seed: int, *names: object) -> np.random.Generator:
    """Generator that depends on the seed and the names alone: the same on every machine and in every process."""
    digest = blake2b("/".join(map(str, names)).encode(), digest_size=16).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, "<u4").tolist()])


def low_pass(audio: Floats, sample_rate: int, sensor: Sensor, rng: np.random.Generator) -> Floats:
    """EBEN's filter: a second-order low-pass run forward and backward (zero phase), cut-off and Q jittered."""
    jitter = rng.uniform(1 - sensor.filter_jitter, 1 + sensor.filter_jitter, 2)
    b, a = biquad(sensor.cutoff * jitter[0], sensor.q * jitter[1], sample_rate)
    side = min(len(audio) - 1, round(0.05 * sample_rate))
    padded = np.pad(audio, side, mode="reflect")
    forward = signal.lfilter(b, a, padded)
    return signal.lfilter(b, a, forward[::-1])[::-1][side : side + len(audio)]


def biquad(cutoff: float, q: float, sample_rate: int) -> tuple[Floats, Floats]:
    """Second-order low-pass (b, a), as torchaudio's lowpass_biquad (Bristow-Johnson, "Audio EQ cookbook")."""
    omega = 2 * np.pi * min(cutoff, 0.49 * sample_rate) / sample_rate
    alpha, cos = np.sin(omega) / (2 * q), np.cos(omega)
    b = np.array([(1 - cos) / 2, 1 - cos, (1 - cos) / 2], np.float32)
    a = np.array([1 + alpha, -2 * cos, 1 - alpha], np.float32)
    return b / a[0], a / a[0]


def _grid(sample_rate: int) -> Floats:
    """Frequencies (F,) of the short-time spectra in Hz."""
    size = frame_size(sample_rate)
    return (np.arange(size // 2 + 1) * (sample_rate / size)).astype(np.float32)


def _curve(sensor: Sensor, name: str, frequencies: Floats) -> Floats:
    """A sensor's curve at other frequencies: straight lines on the octave scale, level beyond the ends."""
    values = np.asarray(getattr(sensor, name), np.float32)
    if not len(values):
        return np.zeros(len(frequencies), np.float32)
    return np.interp(octaves(frequencies), octaves(np.asarray(sensor.frequencies)), values).astype(np.float32)


def _response(sensor: Sensor, sample_rate: int, rng: np.random.Generator) -> Floats | None:
    """One recording's response in dB (F,): the mean, a smooth deviation, and the resonances."""
    if not (sensor.response_db or sensor.response_spread_db or sensor.resonances):
        return None
    frequencies = _grid(sample_rate)
    response = _curve(sensor, "response_db", frequencies)
    spread = _curve(sensor, "response_spread_db", frequencies)
    response = response + spread * smooth_curve(octaves(frequencies), rng)
    for centre, q, gain in sensor.resonances:
        centre *= rng.uniform(1 - sensor.resonance_jitter, 1 + sensor.resonance_jitter)
        detuning = q * (frequencies / centre - centre / np.maximum(frequencies, 1))
        response = response + gain / (1 + detuning**2)
    return response


def _body(
    speech: Floats, clean: Floats, sample_rate: int, sensor: Sensor, response: Floats | None, rng: np.random.Generator
) -> Floats:
    """Filter speech (T,) by the response and by what moves: gains, fricatives, phase, noise in its envelope."""
    size, frequencies = frame_size(sample_rate), _grid(sample_rate)
    if sensor.band_limit:  # what the band limit will remove need not be made
        frequencies = frequencies[frequencies < 1.1 * sensor.band_limit * (1 + sensor.band_limit_jitter)]
    used = slice(len(frequencies))
    spectra = stft(speech, size)[:, used]
    times = np.arange(len(spectra), dtype=np.float32) * (size // OVERLAP / sample_rate / sensor.gain_seconds)
    pitches = octaves(frequencies) * 2  # half an octave moves together
    gain = np.zeros(len(frequencies), np.float32) if response is None else response[used]
    if sensor.slope or sensor.voice_slope:
        heard = spectra if clean is speech else stft(clean, size)[:, used]
        gain = gain + _dynamics(power(heard), frequencies, sensor)
    spread = _curve(sensor, "gain_spread_db", frequencies)
    if sensor.gain_spread_db:
        gain = gain + spread * smooth_field(times, pitches, rng)
    if sensor.coherence:
        rest = np.minimum(1, _curve(sensor, "coherence", frequencies) / gain_coherence(spread))
        share = _curve(sensor, "noise_share", frequencies)
        spectra = _decohere(spectra, rest, share, size, len(speech), times, pitches, rng)
    return istft(spectra * np.exp(gain * np.float32(np.log(10) / 20)), size, len(speech))


def gain_coherence(spread_db: Floats) -> Floats:
    """Coherence that log-normal gains of this deviation leave: E[g]^2 / E[g^2]."""
    return np.exp(-((spread_db * np.log(10) / 20) ** 2))


def _dynamics(powers: Floats, frequencies: Floats, sensor: Sensor) -> Floats:
    """Gain in dB (L, F) by which bands follow the voice rather than themselves, from powers (L, F) of clean speech.

    It moves with the levels around their means over the speech; pauses keep the gain of 25 dB below.
    """
    active = active_frames(powers)
    own, voice = decibels(_smear(powers) + 1e-12), voice_level(powers, frequencies)
    own, voice = (np.clip(level - level[active].mean(0), -25, 25) for level in (own, voice))
    slope = _curve(sensor, "slope", frequencies) - 1 if sensor.slope else np.float32(0)
    return own * slope + voice[:, None] * _curve(sensor, "voice_slope", frequencies)


def _decohere(
    spectra: Complex,
    coherence: Floats,
    noise_share: Floats,
    size: int,
    length: int,
    times: Floats,
    pitches: Floats,
    rng: np.random.Generator,
) -> Complex:
    """Lower the coherence of spectra (L, F) with themselves to ``coherence`` (F,), power kept.

    A share of the lost power returns as noise in the band-wise envelope of the speech; the phase of the rest wanders
    slowly by a normal angle of variance v, which leaves exp(-v) of the coherence (the characteristic function).
    """
    noisy = (noise_share * (1 - coherence)).astype(np.float32)
    variance = -np.log(np.maximum(coherence / np.maximum(1 - noisy, 1e-6), 1e-4))
    angle = (np.sqrt(variance) * smooth_field(times, pitches * 2, rng)).astype(np.float32)
    turned = np.empty_like(spectra)
    turned.real, turned.imag = np.cos(angle), np.sin(angle)
    turned *= spectra * np.sqrt(1 - noisy)
    if not noisy.any():
        return turned
    noise = stft(rng.standard_normal(length, np.float32), size)[:, : spectra.shape[1]]
    envelope = np.sqrt(_smear(power(spectra)) * (noisy * np.float32(OVERLAP / size)))
    return turned + envelope * noise  # the noise has power size / OVERLAP a bin


def _smear(powers: Floats, width: int = 9) -> Floats:
    """Running mean over ``width`` bins (about 280 Hz) of (L, F): the harmonics go, the envelope stays."""
    return ndimage.uniform_filter1d(powers, width, axis=1, mode="nearest")


def _body_sounds(length: int, sample_rate: int, sensor: Sensor, rng: np.random.Generator) -> Floats:
    """Heartbeat, bumps and breath (T,) for speech of level 1."""
    total = np.zeros(length, np.float32)
    seconds = length / sample_rate
    if sensor.heart_db is not None:
        beats = np.arange(rng.uniform(0, 1), seconds, 60 / rng.uniform(55, 95))
        for beat in (*beats, *(beats + 0.3)):  # the two sounds of a beat
            _add_pulse(total, beat, sample_rate, rng.uniform(25, 50), 0.04, 10 ** (sensor.heart_db / 20))
    if sensor.thump_db is not None:
        for moment in rng.uniform(0, seconds, rng.poisson(sensor.thumps_per_second * seconds)):
            height = 10 ** ((sensor.thump_db + rng.normal(0, 4)) / 20)
            _add_pulse(total, moment, sample_rate, rng.uniform(20, 90), rng.uniform(0.02, 0.08), height)
    if sensor.breath_db is not None:
        b, a = signal.butter(1, (150, min(1000, 0.4 * sample_rate)), "bandpass", fs=sample_rate)
        noise = signal.lfilter(b.astype(np.float32), a.astype(np.float32), rng.standard_normal(length, np.float32))
        phase = 2 * np.pi * (np.arange(length, dtype=np.float32) * (0.3 / sample_rate) + np.float32(rng.random()))
        total += 10 ** (sensor.breath_db / 20) / max(sound.rms(noise), 1e-9) * noise * np.maximum(np.sin(phase), 0)
    return total


def _add_pulse(total: Floats, moment: float, sample_rate: int, pitch: float, decay: float, height: float) -> None:
    """Add a damped oscillation in place."""
    start = int(moment * sample_rate)
    time = np.arange(min(len(total) - start, int(6 * decay * sample_rate)), dtype=np.float32) / sample_rate
    if len(time):
        total[start : start + len(time)] += height * np.exp(-time / decay) * np.sin(2 * np.pi * pitch * time)


def _surroundings(
    speech: Floats,
    level: float,
    sample_rate: int,
    sensor: Sensor,
    response: Floats | None,
    rng: np.random.Generator,
    ambient: tuple[Floats, float] | None,
) -> Floats:
    """Add leaked sound and the sensor's noise to (T,), then cut above the band limit, all in one long spectrum."""
    added = sensor.noise_db or sensor.white_noise or sensor.ambient_db is not None or ambient is not None
    if not added and not sensor.band_limit:
        return speech
    length = len(speech)
    side = min(length - 1, round(0.01 * sample_rate))
    size = fft.next_fast_len(length + 2 * side, real=True)
    frequencies = np.arange(size // 2 + 1, dtype=np.float32) * (sample_rate / size)
    padded = np.pad(speech, (side, side), mode="reflect").astype(np.float32)
    spectrum = fft.rfft(padded, size)
    scale = np.float32(level * np.sqrt(size / 2))  # a white spectrum of unit deviation a part has level 1 in time
    powers = np.full(len(frequencies), np.float32(sensor.white_noise**2))
    if sensor.noise_db:
        floor = _curve(sensor, "noise_db", frequencies) + sensor.noise_spread_db * rng.standard_normal()
        powers = powers + (10 ** (floor / 10) * (sample_rate / 2)).astype(np.float32)
    if ambient is not None or sensor.ambient_db is not None:
        colour = (
            np.zeros_like(frequencies) if response is None else np.interp(frequencies, _grid(sample_rate), response)
        )
        colour = (10 ** (colour / 20)).astype(np.float32)
    if ambient is not None:
        gain = level * 10 ** (ambient[1] / 20) / max(sound.rms(ambient[0]), 1e-9)
        spectrum = spectrum + fft.rfft(np.pad(gain * ambient[0], side), size) * colour
    elif sensor.ambient_db is not None:
        pink = 1 / np.maximum(frequencies, 50)
        powers = powers + 10 ** (sensor.ambient_db / 10) * colour**2 * pink / pink.mean()
    if powers.any():
        noise = rng.standard_normal((2, len(frequencies)), np.float32)
        spectrum = spectrum + scale * np.sqrt(powers) * (noise[0] + 1j * noise[1])
    if sensor.band_limit:
        limit = sensor.band_limit * rng.uniform(1 - sensor.band_limit_jitter, 1 + sensor.band_limit_jitter)
        spectrum = spectrum * np.clip(0.5 + (limit - frequencies) / (0.04 * limit), 0, 1)  # 4 % from pass to stop
    return fft.irfft(spectrum, size)[side : side + length]


def _jitter_gain(spread_db: float, rng: np.random.Generator) -> float:
    return float(10 ** (rng.uniform(-spread_db, spread_db) / 20))


def load_sensor(name: str | os.PathLike[str]) -> Sensor:
    """A preset by name, or the sensor in a YAML file (as `twostage fit-sensor` writes it)."""
    if str(name) in PRESETS:
        return PRESETS[str(name)]
    import yaml  # type: ignore[import-untyped]

    path = Path(name)
    if not path.is_file():
        raise DataError(f"sensor {name}: neither a file nor one of {', '.join(PRESETS)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    try:
        return build(Sensor, values, "sensor")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def save_sensor(path: str | os.PathLike[str], sensor: Sensor, *, overwrite: bool = False, comment: str = "") -> None:
    """Write a sensor as YAML."""
    import yaml

    path = Path(path)
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists; choose another name or allow to overwrite")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    values = {name: _listed(value) for name, value in asdict(sensor).items()}
    part.write_text("".join(f"# {line}\n" for line in comment.splitlines()) + yaml.safe_dump(values, sort_keys=False))
    os.replace(part, path)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


EBEN = Sensor(cutoff=600.0, q=1.0, filter_jitter=0.2, white_noise=0.005)

# Levels and coherence: a look at real throat-accelerometer pairs (TAPS, Kim et al., 2025): 0 dB to 500 Hz, a dip at
# 1 kHz, 8 dB down to 3.5 kHz, 8 kHz sampling; quiet frames 10 to 40 dB below speech, least above 2 kHz.
THROAT = Sensor(
    frequencies=(0, 60, 120, 250, 350, 500, 700, 1000, 1400, 2000, 2800, 3500, 3900, 4050, 8000),
    response_db=(-12, -2, 0, 4, 5, 3, -8, -12, -8, -9, -11, -8, -13, -20, -40),
    response_spread_db=(3, 3, 3, 3, 2.5, 2.5, 3.5, 4, 4, 4, 5, 6, 6, 6, 6),
    gain_spread_db=(3, 3, 2.5, 2.5, 2.5, 3, 3.5, 4, 4, 4, 4, 4, 4, 4, 4),
    gain_seconds=0.1,
    slope=(0.7, 0.7, 0.85, 1.0, 0.9, 0.7, 0.55, 0.3, 0.2, 0.15, 0.1, 0.1, 0.1, 0.1, 0.1),
    voice_slope=(0.1, 0.1, 0.0, 0.0, 0.0, 0.3, 0.4, 0.5, 0.55, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
    coherence=(0.3, 0.5, 0.7, 0.8, 0.7, 0.7, 0.6, 0.35, 0.2, 0.1, 0.06, 0.05, 0.05, 0.05, 0.05),
    noise_share=(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
    noise_db=(-60, -62, -68, -70, -70, -72, -72, -70, -68, -66, -64, -62, -62, -64, -64),
    noise_spread_db=5.0,
    thump_db=-12.0,
    thumps_per_second=0.2,
    heart_db=-30.0,
    ambient_db=-45.0,
    band_limit=4050.0,
    band_limit_jitter=0.02,
    level_jitter_db=0.0,
)

PRESETS: dict[str, Sensor] = {"eben": EBEN, "throat": THROAT}
