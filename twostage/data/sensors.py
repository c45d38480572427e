"""Sensors: the parameters of the simulator, presets from the literature, and their YAML files."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostage.utils.errors import ConfigError, DataError
from twostage.utils.files import replacing
from twostage.utils.schema import build

Curve = tuple[float, ...]


def as_curve(values: NDArray[np.floating]) -> Curve:
    """Convert values (K,) to the plain numbers that a sensor stores."""
    return tuple(values.tolist())


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
    """All parameters of a sensor for the simulator. Hz, seconds, dB; curves are given on the grid ``frequencies``.

    Levels in dB are relative to the active level of the speech at the sensor.
    """

    # EBEN's low-pass: second order, forward and backward (Hauret et al., "EBEN", ICASSP 2023, section 2)
    cutoff: float = 0.0  # Hz, of EBEN's low-pass; 0 = none
    q: float = 1.0  # of that filter
    filter_jitter: float = 0.0  # cutoff and q are each multiplied by U(1 - jitter, 1 + jitter)
    # the linear part: magnitude response and its variation between recordings
    frequencies: Curve = ()  # Hz, increasing: the grid of all curves
    response_db: Curve = ()  # empty: flat
    response_spread_db: Curve = ()  # standard deviation of the response between recordings
    resonances: tuple[Curve, ...] = ()  # (Hz, q, dB) each
    resonance_jitter: float = 0.1  # each frequency is multiplied by U(1 - jitter, 1 + jitter)
    # the nonlinear part: under the skin, the level of a band depends less on the airborne speech in that band than on
    # the voice. Per dB of clean speech in the band it changes by `slope` dB (linear filter: 1), per dB of voice (80 to
    # 500 Hz) by `voice_slope` dB (linear filter: 0)
    slope: Curve = ()  # change of a band in dB per dB of clean speech in it
    voice_slope: Curve = ()  # change of a band in dB per dB of voice level
    gain_spread_db: Curve = ()  # standard deviation of slow random gains by band
    gain_seconds: float = 0.1  # correlation time of these gains
    speech_share: float = 0.0  # fraction of their variance that is a function of the speech, random for each recording
    coherence: Curve = ()  # magnitude-squared, between clean and simulated speech
    noise_share: Curve = ()  # fraction of incoherent power that is noise with the speech's envelope; rest: random phase
    headroom_db: float | None = None  # soft saturation this far above the active level
    # added sounds
    noise_db: Curve = ()  # the sensor's noise, dB per Hz
    noise_spread_db: float = 0.0  # standard deviation of its level between recordings
    white_noise: float = 0.0  # standard deviation relative to that of the speech
    ambient_db: float | None = None  # ambient sound that leaks in, before the sensor's response
    heart_db: float | None = None  # dB: peaks of heartbeats
    thump_db: float | None = None  # dB: peaks of bumps and cable noise
    thumps_per_second: float = 0.3  # on average
    breath_db: float | None = None  # dB: maximum level of breathing
    # the end of the chain
    band_limit: float = 0.0  # Hz: upper limit of the spectrum; 0 = none
    band_limit_jitter: float = 0.0  # band_limit is multiplied by U(1 - jitter, 1 + jitter)
    rounding_db: float | None = None  # dB: white noise over the whole band, as from rounding quiet sound to 16 bits
    rounding_spread_db: float = 0.0  # standard deviation of its level between recordings
    level_jitter_db: float = 0.0  # dB: uniform in +- this

    def __post_init__(self) -> None:
        grid = np.asarray(self.frequencies)
        if len(grid) and (len(grid) < 2 or grid[0] < 0 or (np.diff(grid) <= 0).any()):
            raise ConfigError("sensor.frequencies must be two or more, increasing from 0 or above")
        for name in CURVES:
            if len(getattr(self, name)) not in (0, len(grid)):
                raise ConfigError(
                    f"sensor.{name} has {len(getattr(self, name))} values, sensor.frequencies {len(grid)}"
                )
        if any(not 0 <= c <= 1 for c in (*self.coherence, *self.noise_share, self.speech_share)):
            raise ConfigError("sensor.coherence, sensor.noise_share and sensor.speech_share must lie between 0 and 1")
        if any(len(resonance) != 3 for resonance in self.resonances):
            raise ConfigError("sensor.resonances must be (Hz, q, dB) each")
        if any(hertz <= 0 or q <= 0 for hertz, q, _ in self.resonances):
            raise ConfigError("sensor.resonances: frequencies and q must be positive")
        for name in ("filter_jitter", "resonance_jitter", "band_limit_jitter"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"sensor.{name} is {getattr(self, name)}, must be at least 0 and below 1")
        for name in ("cutoff", "band_limit", "white_noise", "thumps_per_second", "level_jitter_db"):
            if getattr(self, name) < 0:
                raise ConfigError(f"sensor.{name} is {getattr(self, name)}, must not be negative")
        if self.q <= 0 or self.gain_seconds <= 0:
            raise ConfigError(f"sensor.q and sensor.gain_seconds must be positive: {self.q}, {self.gain_seconds}")

    def sample(self, rng: np.random.Generator) -> "Sensor":
        """The sensor for one recording; for a family (`AnySensor`), a random member of it."""
        return self


def load_sensor(name: str | os.PathLike[str]) -> Sensor:
    """Load a preset by name, or the sensor in a YAML file (as `twostage fit-sensor` writes it)."""
    if str(name) in PRESETS:
        return PRESETS[str(name)]
    import yaml  # type: ignore[import-untyped]

    path = Path(name)
    if not path.is_file():
        raise DataError(f"sensor {name}: neither a file nor one of {', '.join(PRESETS)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: long numbers, invalid dates
        raise DataError(f"not YAML: {str(error).partition(chr(10))[0]}", subject=path) from None
    try:
        return build(Sensor, values, "sensor")
    except ConfigError as error:
        raise ConfigError(f"{error}", subject=path) from None


def save_sensor(path: str | os.PathLike[str], sensor: Sensor, *, overwrite: bool = False, comment: str = "") -> None:
    """Write a sensor as YAML. Raises ConfigError for a family of sensors: sample one first."""
    import yaml

    if type(sensor) is not Sensor:
        raise ConfigError(f"{type(sensor).__name__} is a family of sensors, a file contains one", subject=path)

    values = {name: _listed(value) for name, value in asdict(sensor).items()}
    text = "".join(f"# {line}\n" for line in comment.splitlines()) + yaml.safe_dump(values, sort_keys=False)
    with replacing(path, overwrite=overwrite) as partial:
        partial.write_text(text, encoding="utf-8")


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


EBEN = Sensor(cutoff=600.0, q=1.0, filter_jitter=0.2, white_noise=0.005)

GRID = (
    0.0,
    60.0,
    120.0,
    190.0,
    250.0,
    350.0,
    450.0,
    580.0,
    770.0,
    1000.0,
    1350.0,
    1800.0,
    2350.0,
    3100.0,
    4000.0,
    8000.0,
)

# Accelerometer at the throat, sampled at 8 kHz: rounded results of `fit-sensor` for pairs of five speakers of
# TAPS (Kim, Song and Chung, 2025). Above 500 Hz a band rises by 0.2 dB per dB of airborne sound in it and by more than
# 0.5 dB per dB of voice. Coherence: 0.6 to 0.8 below 500 Hz, below 0.1 above 2 kHz.
THROAT = Sensor(
    frequencies=GRID,
    response_db=(-30, -14, 0, 1, 5, 6, 5.5, -0.5, -3, -2, -1, 0.5, 0.5, -1.5, 0, 0),
    response_spread_db=(3, 3, 2, 2, 2, 2, 2, 2.5, 3, 3, 3, 3.5, 4, 4, 4, 4),
    slope=(1, 1, 1, 1, 1, 1, 0.9, 0.6, 0.35, 0.27, 0.23, 0.22, 0.18, 0.14, 0.1, 0.1),
    voice_slope=(0, 0, 0, 0, -0.1, -0.1, 0, 0.4, 0.5, 0.6, 0.7, 0.6, 0.65, 0.65, 0.65, 0.65),
    gain_spread_db=(4, 4, 3.5, 3.5, 3.5, 3.5, 4, 5, 5, 5, 4.8, 4.5, 4.3, 4.4, 4.8, 4.8),
    coherence=(0.4, 0.5, 0.7, 0.85, 0.85, 0.8, 0.75, 0.65, 0.5, 0.4, 0.35, 0.25, 0.08, 0.06, 0.04, 0.04),
    noise_share=(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5),
    noise_db=(-88, -76, -65, -68, -70, -71, -70, -70, -71, -72, -72, -73, -73, -73, -74, -74),
    noise_spread_db=4.0,
    thump_db=-15.0,
    thumps_per_second=0.1,
    heart_db=-45.0,
    ambient_db=-50.0,
    band_limit=4060.0,
    band_limit_jitter=0.02,
    rounding_db=-76.0,
    rounding_spread_db=6.0,
)

# Microphone in the occluded ear canal: occlusion boosts low frequencies, little is left above 2 kHz (Vibravox,
# Hauret et al., 2024, section III; Richard et al., Applied Acoustics, 2023).
IN_EAR = Sensor(
    frequencies=GRID,
    response_db=(0, 6, 8, 8, 7, 5, 3, 0, -4, -8, -13, -19, -27, -35, -42, -50),
    response_spread_db=(4, 4, 3, 2, 2, 2, 2, 2, 2.5, 3, 3.5, 4, 4, 4, 4, 4),
    slope=(1, 1, 1, 1, 1, 1, 1, 0.85, 0.75, 0.7, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5),
    voice_slope=(0, 0, 0, 0, 0, 0, 0, 0.15, 0.2, 0.3, 0.35, 0.4, 0.4, 0.4, 0.4, 0.4),
    gain_spread_db=(3, 3, 2, 2, 2, 2, 2, 2, 2.5, 3, 3, 3.5, 4, 4, 4, 4),
    coherence=(0.4, 0.6, 0.75, 0.85, 0.85, 0.85, 0.8, 0.75, 0.7, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05, 0.05),
    noise_share=(0.2,) * 16,
    noise_db=(-58, -60, -63, -68, -72, -75, -77, -78, -79, -80, -81, -82, -83, -84, -85, -85),
    noise_spread_db=4.0,
    heart_db=-20.0,
    breath_db=-40.0,
    ambient_db=-45.0,
)

# Accelerometer on the forehead: skin and bone pass the first kilohertz, a mounting resonance near 2 kHz
# (Vibravox, section III; McBride et al., Applied Ergonomics, 2011, on placement).
FOREHEAD = Sensor(
    frequencies=GRID,
    response_db=(-10, -4, 2, 4, 5, 4, 2, -2, -7, -11, -16, -20, -26, -33, -40, -50),
    response_spread_db=(4, 4, 3, 3, 2.5, 2.5, 2.5, 3, 3, 3, 4, 4, 4, 4, 4, 4),
    resonances=((2000.0, 8.0, 6.0),),
    slope=(1, 1, 1, 1, 1, 1, 0.9, 0.75, 0.6, 0.5, 0.4, 0.35, 0.3, 0.3, 0.3, 0.3),
    voice_slope=(0, 0, 0, 0, 0, 0, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4),
    gain_spread_db=(3, 3, 3, 2.5, 2.5, 2.5, 2.5, 3, 3.5, 3.5, 4, 4, 4, 4, 4, 4),
    coherence=(0.3, 0.5, 0.7, 0.8, 0.8, 0.75, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25, 0.15, 0.1, 0.05, 0.05),
    noise_share=(0.2,) * 16,
    noise_db=(-62, -64, -67, -70, -72, -74, -75, -76, -76, -77, -78, -79, -80, -80, -80, -80),
    noise_spread_db=4.0,
    thump_db=-15.0,
    thumps_per_second=0.1,
    ambient_db=-50.0,
)

# Contact pickup at the temple: the worst bone-conduction position, noisy and narrow-band (Vibravox, section III: the
# lowest raw intelligibility of its five sensors).
TEMPLE = Sensor(
    frequencies=GRID,
    response_db=(-12, -3, 3, 5, 5, 3, 0, -5, -11, -16, -21, -25, -30, -36, -42, -50),
    response_spread_db=(4, 4, 3, 3, 3, 3, 3, 3.5, 4, 4, 4, 4, 4, 4, 4, 4),
    slope=(1, 1, 1, 1, 1, 0.9, 0.75, 0.5, 0.4, 0.3, 0.3, 0.25, 0.2, 0.2, 0.2, 0.2),
    voice_slope=(0, 0, 0, 0, 0, 0, 0.1, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5),
    gain_spread_db=(4, 4, 3, 3, 3, 3, 3.5, 4, 4, 4.5, 4.5, 4.5, 4.5, 4.5, 4.5, 4.5),
    coherence=(0.2, 0.4, 0.55, 0.65, 0.65, 0.6, 0.55, 0.45, 0.35, 0.25, 0.15, 0.1, 0.05, 0.05, 0.05, 0.05),
    noise_share=(0.3,) * 16,
    noise_db=(-55, -57, -59, -62, -65, -66, -67, -67, -68, -68, -69, -70, -71, -71, -71, -71),
    noise_spread_db=5.0,
    thump_db=-10.0,
    thumps_per_second=0.3,
    heart_db=-25.0,
    ambient_db=-40.0,
)


class AnySensor(Sensor):
    """A family of sensors: every recording has a different one, from throat to ear and beyond the likely range.

    It is for restorers that must work with unknown sensors (domain randomization; Tobin et al., IROS 2017). The ranges
    include the presets and were not fitted.
    """

    def sample(self, rng: np.random.Generator) -> Sensor:
        hertz = np.array(GRID)
        pitch = np.log2(np.maximum(hertz, 30))

        def octaves_above(low: float, high: float) -> Any:
            """Distance of the grid from a random corner between two frequencies in octaves; negative below it."""
            return pitch - rng.uniform(np.log2(low), np.log2(high))

        roll_off = -rng.uniform(0, 14) * octaves_above(300, 1500).clip(0)
        response = roll_off.clip(-rng.uniform(10, 50)) + rng.uniform(0, 12) * octaves_above(60, 250).clip(-3, 0)
        own_weight = 1 / (1 + 4.0 ** octaves_above(400, 2000))  # 1: the band follows the airborne sound in it
        slope = own_weight + (1 - own_weight) * rng.uniform(0.1, 0.8)
        floor = rng.uniform(-88, -64) + rng.uniform(-2, 2) * (pitch - 9)
        limited = rng.random() < 0.6
        return Sensor(
            frequencies=GRID,
            response_db=as_curve(response),
            response_spread_db=(rng.uniform(2, 5),) * len(GRID),
            slope=as_curve(slope),
            voice_slope=as_curve((1 - slope) * rng.uniform(0.4, 1.1)),
            gain_spread_db=as_curve(np.interp(pitch, (8, 11), (rng.uniform(1, 5), rng.uniform(3, 9)))),
            speech_share=rng.uniform(0.8, 1),
            coherence=as_curve(own_weight * rng.uniform(0.6, 1) + (1 - own_weight) * rng.uniform(0.05, 0.5)),
            noise_share=as_curve(np.interp(pitch, (8, 11), (0, rng.uniform(0, 0.15)))),
            noise_db=as_curve(floor),
            thump_db=rng.uniform(-25, -8) if rng.random() < 0.3 else None,
            heart_db=rng.uniform(-45, -20) if rng.random() < 0.2 else None,
            ambient_db=rng.uniform(-60, -35),
            headroom_db=rng.uniform(6, 20) if rng.random() < 0.1 else None,
            band_limit=2 ** rng.uniform(11, 13) if limited else 0.0,
            rounding_db=rng.uniform(-95, -70),
        )


PRESETS: dict[str, Sensor] = {
    "any": AnySensor(),
    "eben": EBEN,
    "throat": THROAT,
    "in-ear": IN_EAR,
    "forehead": FOREHEAD,
    "temple": TEMPLE,
}
