"""Simulates body-conducted speech from clean speech, by pure functions of (audio, rng).

The chain: EBEN's low-pass, the sensor's response with its variation between recordings and over time, loss of
coherence, body sounds, saturation, ambient sound, the sensor's noise, the band limit, level. A `Sensor` has all
parameters; parts whose parameters are empty, zero or None are skipped at no cost.
"""

from hashlib import blake2b
from itertools import pairwise

import numpy as np
from scipy import fft, ndimage

from twostage.audio import levels
from twostage.data.sensors import MOVING, PRESETS, Sensor, load_sensor
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

__all__ = ["PRESETS", "Sensor", "load_sensor", "seeded", "simulate", "simulate_file"]

PART = 60.0  # seconds of a long file that are simulated at once
SPEECH_BANDS = (100, 250, 400, 600, 850, 1150, 1500, 1900, 2400, 3000, 3700, 4500, 5500)  # Hz: edges
SPEECH_SPREAD_DB = 8.0  # standard deviation of the level of speech in such a band, roughly


def simulate(
    audio: Floats,
    sample_rate: int,
    sensor: Sensor,
    rng: np.random.Generator,
    *,
    level: float | None = None,
    ambient: tuple[Floats, float] | None = None,
    recording: np.random.Generator | None = None,
) -> Floats:
    """Simulate the recording of clean speech (T,) by ``sensor``: (T,) float32, without delay and at the same level.

    ``level``: active level in dB of the recording that ``audio`` is a part of, the reference of the noise (default:
    that of ``audio``); with it, pauses have noise, too. ``ambient``: ambient sound (T,) and its level in dB; without
    it, pink noise at ``sensor.ambient_db``. ``recording`` draws everything that is constant in a recording (filter,
    response, noise level), ``rng`` everything else; without ``recording``, ``rng`` draws everything. Only ``recording``
    is the same for all parts of a long file.
    """
    clean = np.asarray(audio, np.float32)
    if clean.ndim != 1:
        raise ValueError(f"simulate takes one channel (T,), got {clean.shape}")
    recording_rng = recording or rng
    sensor = sensor.sample(recording_rng)
    active = levels.active_level(clean, sample_rate)
    reference = active if level is None else level
    if not np.isfinite(reference):
        return np.zeros_like(clean)
    speech = low_pass(clean, sample_rate, sensor, recording_rng) if sensor.cutoff else clean
    response = _response(sensor, sample_rate, recording_rng)
    if response is not None or any(getattr(sensor, name) for name in MOVING):
        speech = _body(speech, clean, sample_rate, sensor, response, recording_rng, rng)
    change = active - levels.active_level(speech, sample_rate)
    speech = speech * np.float32(10 ** (change / 20)) if np.isfinite(change) else speech
    amplitude = 10 ** (reference / 20)
    speech = speech + amplitude * _body_sounds(len(clean), sample_rate, sensor, rng)
    if sensor.headroom_db is not None:
        ceiling = amplitude * 10 ** (sensor.headroom_db / 20)
        speech = ceiling * np.tanh(speech / ceiling)
    speech = _surroundings(speech, amplitude, sample_rate, sensor, response, recording_rng, rng, ambient)
    jitter = recording_rng.uniform(-sensor.level_jitter_db, sensor.level_jitter_db)
    return (speech * 10 ** (jitter / 20)).astype(np.float32)


def seeded(seed: int, *names: object) -> np.random.Generator:
    """A generator that depends on the seed and the names only: the same on every machine and in every process."""
    digest = blake2b("/".join(map(str, names)).encode(), digest_size=16).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, "<u4").tolist()])


def simulate_file(audio: Floats, sample_rate: int, sensor: Sensor, seed: int, name: str) -> Floats:
    """Simulate a recording (C, T) by the sensor; it depends on the sound, the seed and the name only.

    Every channel is a separate recording. Long ones are simulated in parts of a minute with crossfades, to bound
    memory; the sensor's response and noise level are constant throughout.
    """
    return np.stack([_channel(x, sample_rate, sensor, seed, f"{name}#{c}") for c, x in enumerate(audio)])


def _channel(audio: Floats, sample_rate: int, sensor: Sensor, seed: int, name: str) -> Floats:
    part, fade = round(PART * sample_rate), round(0.05 * sample_rate)
    level = levels.active_level(audio, sample_rate)
    out = np.zeros(len(audio), np.float32)
    for number, start in enumerate(range(0, len(audio), part)):
        segment = audio[max(0, start - fade) : start + part]
        rng, recording = seeded(seed, name, number), seeded(seed, name)
        simulated = simulate(segment, sample_rate, sensor, rng, level=level, recording=recording)
        if start:
            rise = np.linspace(0, 1, fade, dtype=np.float32)
            out[start - fade : start] *= 1 - rise
            simulated[:fade] *= rise
        out[max(0, start - fade) : start + part] += simulated
    return out


def low_pass(audio: Floats, sample_rate: int, sensor: Sensor, rng: np.random.Generator) -> Floats:
    """EBEN's filter: a second-order low-pass, run forward and backward (zero phase), with jittered cutoff and Q."""
    from scipy.signal import lfilter  # imported here because it takes a second

    jitter = rng.uniform(1 - sensor.filter_jitter, 1 + sensor.filter_jitter, 2)
    b, a = biquad(sensor.cutoff * jitter[0], sensor.q * jitter[1], sample_rate)
    padding = min(len(audio) - 1, round(0.05 * sample_rate))
    padded = np.pad(audio, padding, mode="reflect")
    forward = lfilter(b, a, padded)
    return lfilter(b, a, forward[::-1])[::-1][padding : padding + len(audio)]


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
    """A sensor's curve at other frequencies: linear on the octave scale, constant beyond the ends."""
    values = np.asarray(getattr(sensor, name), np.float32)
    if not len(values):
        return np.zeros(len(frequencies), np.float32)
    return np.interp(octaves(frequencies), octaves(np.asarray(sensor.frequencies)), values).astype(np.float32)


def _response(sensor: Sensor, sample_rate: int, rng: np.random.Generator) -> Floats | None:
    """The response of one recording in dB (F,): the mean, a smooth deviation, and the resonances."""
    if not (sensor.response_db or sensor.response_spread_db or sensor.resonances):
        return None
    frequencies = _grid(sample_rate)
    response = _curve(sensor, "response_db", frequencies)
    spread = _curve(sensor, "response_spread_db", frequencies)
    response = response + spread * smooth_curve(octaves(frequencies), rng)
    for center, q, gain in sensor.resonances:
        center *= rng.uniform(1 - sensor.resonance_jitter, 1 + sensor.resonance_jitter)
        detuning = q * (frequencies / center - center / np.maximum(frequencies, 1))
        response = response + gain / (1 + detuning**2)
    return response


def _body(
    speech: Floats,
    clean: Floats,
    sample_rate: int,
    sensor: Sensor,
    response: Floats | None,
    recording_rng: np.random.Generator,
    rng: np.random.Generator,
) -> Floats:
    """Filter speech (T,) by the response and the time-varying parts: dynamics, random gains, loss of coherence."""
    size, frequencies = frame_size(sample_rate), _grid(sample_rate)
    if sensor.band_limit:  # skip frequencies that the band limit will remove
        frequencies = frequencies[frequencies < 1.1 * sensor.band_limit * (1 + sensor.band_limit_jitter)]
    used = slice(len(frequencies))
    spectra = stft(speech, size)[:, used]
    times = np.arange(len(spectra), dtype=np.float32) * (size // OVERLAP / sample_rate / sensor.gain_seconds)
    positions = octaves(frequencies) * 2  # correlated over half an octave
    gain = np.zeros(len(frequencies), np.float32) if response is None else response[used]
    clean_power = np.empty(0, np.float32)
    if sensor.slope or sensor.voice_slope or sensor.speech_share:
        clean_power = power(spectra if clean is speech else stft(clean, size)[:, used])
    if sensor.slope or sensor.voice_slope:
        gain = gain + _dynamics(clean_power, frequencies, sensor)
    spread = _curve(sensor, "gain_spread_db", frequencies)
    if sensor.gain_spread_db:
        field = smooth_field(times, positions, rng)
        if sensor.speech_share:
            by_speech = _speech_field(clean_power, frequencies, recording_rng)
            field = np.sqrt(1 - sensor.speech_share) * field + np.sqrt(sensor.speech_share) * by_speech
        gain = gain + (spread * field).astype(np.float32)
    if sensor.coherence:
        remaining = np.minimum(1, _curve(sensor, "coherence", frequencies) / gain_coherence(spread))
        noise_share = _curve(sensor, "noise_share", frequencies)
        spectra = _decohere(spectra, remaining, noise_share, size, len(speech), times, positions, rng)
    return istft(spectra * np.exp(gain * np.float32(np.log(10) / 20)), size, len(speech))


def gain_coherence(spread_db: Floats) -> Floats:
    """The coherence that remains with log-normal gains of this deviation: E[g]^2 / E[g^2]."""
    return np.exp(-((spread_db * np.log(10) / 20) ** 2))


def _dynamics(powers: Floats, frequencies: Floats, sensor: Sensor) -> Floats:
    """Gain in dB (L, F) that makes bands depend on the voice level, from powers (L, F) of clean speech.

    It depends on the deviations of the levels from their means over the speech, limited to 25 dB.
    """
    active = active_frames(powers)
    band, voice = decibels(_smear(powers) + 1e-12), voice_level(powers, frequencies)
    band, voice = (np.clip(level - level[active].mean(0), -25, 25) for level in (band, voice))
    slope = _curve(sensor, "slope", frequencies) - 1 if sensor.slope else np.float32(0)
    return band * slope + voice[:, None] * _curve(sensor, "voice_slope", frequencies)


def _speech_field(powers: Floats, frequencies: Floats, rng: np.random.Generator) -> Floats:
    """A random smooth function of the speech with powers (L, F): (L, F), of about unit variance over the speech.

    It stands for what a body does to speech that no filter explains: vowels, nasals and fricatives reach the sensor by
    different paths. Two to eight curves over frequency are each weighted by one random nonlinear unit, whose input are
    the levels of the speech in the bands of SPEECH_BANDS.
    """
    edges = np.unique(np.searchsorted(frequencies, SPEECH_BANDS).clip(0, len(frequencies) - 1))
    if len(edges) < 2:  # a band limit below the second band
        edges = np.array([0, len(frequencies)])
    levels_db = decibels(np.stack([powers[:, a:b].mean(1) for a, b in pairwise(edges)], 1) + 1e-12)
    active = active_frames(powers)
    relative = np.clip((levels_db - levels_db[active].mean(0)) / SPEECH_SPREAD_DB, -3, 3)
    relative = ndimage.uniform_filter1d(relative, 3, axis=0, mode="nearest")
    bands, units = relative.shape[1], int(rng.integers(2, 9))
    weights = rng.standard_normal((bands, units)) * (1.2 / np.sqrt(bands))
    hidden = np.tanh(relative @ weights + rng.normal(0, 0.5, units))
    hidden = (hidden - hidden[active].mean(0)) / np.maximum(hidden[active].std(0), 0.2)
    curves = np.stack([smooth_curve(octaves(frequencies), rng) for _ in range(units)])
    field: Floats = (hidden @ curves / np.sqrt(units)).astype(np.float32)
    return field


def _decohere(
    spectra: Complex,
    coherence: Floats,
    noise_share: Floats,
    size: int,
    length: int,
    times: Floats,
    positions: Floats,
    rng: np.random.Generator,
) -> Complex:
    """Reduce the coherence of spectra (L, F) with their former values to ``coherence`` (F,), at the same power.

    A fraction of the incoherent power is noise with the envelope of the speech in each band. The phase of the rest
    varies slowly by a normal angle of variance v, which leaves a coherence of exp(-v) (the characteristic function).
    """
    noisy = (noise_share * (1 - coherence)).astype(np.float32)
    variance = -np.log(np.clip(coherence / np.maximum(1 - noisy, 1e-6), 1e-4, 1))
    angle = (np.sqrt(variance) * smooth_field(times, positions * 2, rng)).astype(np.float32)
    rotated = np.empty_like(spectra)
    rotated.real, rotated.imag = np.cos(angle), np.sin(angle)
    rotated *= spectra * np.sqrt(1 - noisy)
    if not noisy.any():
        return rotated
    noise = stft(rng.standard_normal(length, np.float32), size)[:, : spectra.shape[1]]
    envelope = np.sqrt(_smear(power(spectra)) * (noisy * np.float32(OVERLAP / size)))
    return rotated + envelope * noise  # the noise has power size / OVERLAP per bin


def _smear(powers: Floats, width: int = 9) -> Floats:
    """Running mean over ``width`` bins (about 280 Hz) of (L, F), which removes harmonics and keeps the envelope."""
    # rounding errors of the running sum can be negative where the power is zero
    return np.maximum(ndimage.uniform_filter1d(powers, width, axis=1, mode="nearest"), 0)


def _body_sounds(length: int, sample_rate: int, sensor: Sensor, rng: np.random.Generator) -> Floats:
    """Heartbeat, bumps and breath (T,), relative to speech at level 1."""
    total = np.zeros(length, np.float32)
    seconds = length / sample_rate
    if sensor.heart_db is not None:
        beats = np.arange(rng.uniform(0, 1), seconds, 60 / rng.uniform(55, 95))
        for beat in (*beats, *(beats + 0.3)):  # the two sounds of a beat
            _add_pulse(total, beat, sample_rate, rng.uniform(25, 50), 0.04, 10 ** (sensor.heart_db / 20))
    if sensor.thump_db is not None:
        for moment in rng.uniform(0, seconds, rng.poisson(sensor.thumps_per_second * seconds)):
            amplitude = 10 ** ((sensor.thump_db + rng.normal(0, 4)) / 20)
            _add_pulse(total, moment, sample_rate, rng.uniform(20, 90), rng.uniform(0.02, 0.08), amplitude)
    if sensor.breath_db is not None:
        from scipy.signal import butter, lfilter

        b, a = butter(1, (150, min(1000, 0.4 * sample_rate)), "bandpass", fs=sample_rate)
        noise = lfilter(b.astype(np.float32), a.astype(np.float32), rng.standard_normal(length, np.float32))
        phase = 2 * np.pi * (np.arange(length, dtype=np.float32) * (0.3 / sample_rate) + np.float32(rng.random()))
        total += 10 ** (sensor.breath_db / 20) / max(levels.rms(noise), 1e-9) * noise * np.maximum(np.sin(phase), 0)
    return total


def _add_pulse(total: Floats, moment: float, sample_rate: int, pitch: float, decay: float, amplitude: float) -> None:
    """Add a damped oscillation in place."""
    start = int(moment * sample_rate)
    time = np.arange(min(len(total) - start, int(6 * decay * sample_rate)), dtype=np.float32) / sample_rate
    if len(time):
        total[start : start + len(time)] += amplitude * np.exp(-time / decay) * np.sin(2 * np.pi * pitch * time)


def _surroundings(
    speech: Floats,
    level: float,
    sample_rate: int,
    sensor: Sensor,
    response: Floats | None,
    recording_rng: np.random.Generator,
    rng: np.random.Generator,
    ambient: tuple[Floats, float] | None,
) -> Floats:
    """Add ambient sound and the sensor's noise to (T,), apply the band limit, and add rounding noise, by one FFT."""
    added = sensor.noise_db or sensor.white_noise or sensor.ambient_db is not None or ambient is not None
    if not added and not sensor.band_limit and sensor.rounding_db is None:
        return speech
    length = len(speech)
    padding = min(length - 1, round(0.01 * sample_rate))
    size = fft.next_fast_len(length + 2 * padding, real=True)
    frequencies = np.arange(size // 2 + 1, dtype=np.float32) * (sample_rate / size)
    padded = np.pad(speech, (padding, padding), mode="reflect").astype(np.float32)
    spectrum = fft.rfft(padded, size)
    scale = np.float32(level * np.sqrt(size / 2))  # for white noise of level 1 from parts of unit variance
    powers = np.full(len(frequencies), np.float32(sensor.white_noise**2))
    if sensor.noise_db:
        floor = _curve(sensor, "noise_db", frequencies) + sensor.noise_spread_db * recording_rng.standard_normal()
        powers = powers + (10 ** (floor / 10) * (sample_rate / 2)).astype(np.float32)
    if ambient is not None or sensor.ambient_db is not None:
        color = np.zeros_like(frequencies) if response is None else np.interp(frequencies, _grid(sample_rate), response)
        color = (10 ** (color / 20)).astype(np.float32)
    if ambient is not None:
        gain = level * 10 ** (ambient[1] / 20) / max(levels.rms(ambient[0]), 1e-9)
        spectrum = spectrum + fft.rfft(np.pad(gain * ambient[0], padding), size) * color
    elif sensor.ambient_db is not None:
        pink = 1 / np.maximum(frequencies, 50)
        powers = powers + 10 ** (sensor.ambient_db / 10) * color**2 * pink / pink.mean()
    if sensor.band_limit:
        limit = sensor.band_limit * recording_rng.uniform(1 - sensor.band_limit_jitter, 1 + sensor.band_limit_jitter)
        passed = np.clip(0.5 + (limit - frequencies) / (0.04 * limit), 0, 1)  # a transition of 4 %
        spectrum, powers = spectrum * passed, powers * passed**2
    if sensor.rounding_db is not None:
        powers = powers + np.float32(
            10 ** ((sensor.rounding_db + sensor.rounding_spread_db * recording_rng.standard_normal()) / 10)
        )
    if powers.any():
        noise = rng.standard_normal((2, len(frequencies)), np.float32)
        spectrum = spectrum + scale * np.sqrt(powers) * (noise[0] + 1j * noise[1])
    return fft.irfft(spectrum, size)[padding : padding + length]
