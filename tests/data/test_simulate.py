"""Tests of the simulator: reproducible, at the level of its input, and true to every parameter of its sensor."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import signal

from twostage.audio import levels
from twostage.data import simulator as module
from twostage.data.sensors import EBEN, PRESETS, Sensor, load_sensor, save_sensor
from twostage.data.simulator import biquad, low_pass, seeded, simulate, simulate_file
from twostage.utils.errors import ConfigError, DataError, OutputError

Speech = Callable[..., np.ndarray]
RATE = 16000
GRID = (0.0, 8000.0)
BANDPASS = signal.butter(4, (1000, 1500), "band", fs=RATE, output="sos")


def noise(seconds: float, sample_rate: int = RATE, seed: int = 0) -> np.ndarray:
    """White noise whose amplitude swells four times a second."""
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    white = np.random.default_rng(seed).standard_normal(len(time))
    return (0.1 * white * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * time))).astype(np.float32)


def run(clean: np.ndarray, sensor: Sensor, seed: int = 0, sample_rate: int = RATE, **settings: object) -> np.ndarray:
    return simulate(clean, sample_rate, sensor, np.random.default_rng(seed), **settings)  # type: ignore[arg-type]


def band_db(x: np.ndarray, low: float, high: float, sample_rate: int = RATE) -> float:
    frequencies, power = signal.welch(x, sample_rate, nperseg=1024)
    return float(10 * np.log10(power[(frequencies >= low) & (frequencies < high)].mean() + 1e-20))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_reproducible_and_keep_length_and_level(name: str, speech: Speech) -> None:
    clean = speech(RATE + 7)
    output = run(clean, PRESETS[name], 1)
    assert output.shape == clean.shape
    assert output.dtype == np.float32
    np.testing.assert_array_equal(output, run(clean, PRESETS[name], 1))
    assert np.abs(output - run(clean, PRESETS[name], 2)).max() > 1e-4
    without_thumps = replace(PRESETS[name], thump_db=None)  # a thump may be louder than this speech
    level = levels.active_level(run(clean, without_thumps, 1), RATE)
    assert level == pytest.approx(levels.active_level(clean, RATE), abs=1.0)


def test_the_preset_throat_has_the_coherence_of_real_pairs() -> None:
    clean = noise(30)
    output = run(clean, PRESETS["throat"])
    frequencies, coherence = signal.coherence(clean, output, RATE, nperseg=512)
    mean = [
        coherence[(frequencies > a) & (frequencies < b)].mean() for a, b in ((150, 500), (2100, 4000), (4300, 8000))
    ]
    assert 0.45 < mean[0] < 0.9
    assert mean[1] < 0.12
    assert mean[2] < 0.01


def test_the_low_pass_is_the_biquad_forward_and_backward() -> None:
    clean = noise(1)
    output = low_pass(clean, RATE, replace(EBEN, filter_jitter=0.0), np.random.default_rng(0))
    b, a = biquad(600, 1.0, RATE)
    expected = signal.filtfilt(b, a, clean, method="gust")
    np.testing.assert_allclose(output[2000:-2000], expected[2000:-2000], atol=2e-5)
    _, response = signal.freqz(b, a, [600], fs=RATE)
    assert abs(response[0]) == pytest.approx(1.0, abs=1e-6)  # |H| of a second-order low-pass at its cut-off is Q


class FixedGenerator:
    """A random generator that returns given values."""

    def __init__(self, *values: float) -> None:
        self.values = np.array(values)

    def uniform(self, *_: object) -> np.ndarray:
        return self.values


def test_cutoff_and_q_of_the_low_pass_are_varied_independently() -> None:
    clean = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    jittered = low_pass(clean, RATE, EBEN, FixedGenerator(1.2, 0.8))  # type: ignore[arg-type]
    without_jitter = replace(EBEN, filter_jitter=0.0, cutoff=1.2 * EBEN.cutoff, q=0.8 * EBEN.q)
    np.testing.assert_allclose(jittered, low_pass(clean, RATE, without_jitter, np.random.default_rng(0)), atol=1e-6)
    assert (
        np.abs(jittered - low_pass(clean, RATE, replace(without_jitter, q=EBEN.q), np.random.default_rng(0))).max()
        > 0.01
    )


def test_the_cutoff_of_the_low_pass_varies_by_at_most_a_fifth() -> None:
    clean = noise(1)
    drops = [
        band_db(low_pass(clean, RATE, EBEN, np.random.default_rng(s)), 2000, 2400) - band_db(clean, 2000, 2400)
        for s in range(30)
    ]
    # the slope is 24 dB per octave: 0.8 and 1.2 times the cut-off differ by 14 dB
    assert 6 < max(drops) - min(drops) < 14.5


def test_eben_adds_white_noise_of_0_005_of_the_speech_level() -> None:
    clean = noise(4)
    output = run(clean, EBEN) - run(clean, replace(EBEN, white_noise=0.0))
    assert levels.rms(output) / 10 ** (levels.active_level(clean, RATE) / 20) == pytest.approx(0.005, rel=0.05)


def test_a_sensor_without_parameters_changes_nothing() -> None:
    clean = noise(2)
    np.testing.assert_allclose(run(clean, Sensor()), clean, atol=1e-6)
    flat = Sensor(frequencies=GRID, response_db=(-7.0, -7.0))  # the level is that of the input, whatever the gain
    np.testing.assert_allclose(run(clean, flat), clean, atol=1e-5)


def test_every_band_has_the_configured_response() -> None:
    clean = noise(8)
    grid, response = (0.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0), (0.0, 0.0, -10.0, -20.0, -30.0, -30.0)
    output = run(clean, Sensor(frequencies=grid, response_db=response))
    ratio = [
        band_db(output, f * 0.97, f * 1.03 + 32) - band_db(clean, f * 0.97, f * 1.03 + 32)
        for f in (300, 1000, 2000, 5000)
    ]
    np.testing.assert_allclose(np.array(ratio[1:]) - ratio[0], [-10, -20, -30], atol=1.0)


def test_the_response_varies_between_recordings_by_the_configured_spread() -> None:
    clean = noise(0.5)
    sensor = Sensor(frequencies=GRID, response_spread_db=(4.0, 4.0))
    tilt = [band_db(run(clean, sensor, s), 400, 700) - band_db(run(clean, sensor, s), 3500, 5500) for s in range(120)]
    assert np.std(tilt) == pytest.approx(4 * 2**0.5, rel=0.25)


def test_a_resonance_amplifies_its_frequency() -> None:
    clean = noise(4)
    output = run(clean, Sensor(resonances=((2000.0, 8.0, 12.0),), resonance_jitter=0.0))
    gain = [band_db(output, f - 40, f + 40) - band_db(clean, f - 40, f + 40) for f in (2000, 800)]
    assert gain[0] - gain[1] == pytest.approx(12, abs=1.5)


@pytest.mark.parametrize("target", [0.8, 0.5, 0.2])
@pytest.mark.parametrize("noise_share", [0.0, 0.5, 1.0])
def test_the_coherence_is_the_configured_one(target: float, noise_share: float) -> None:
    clean = noise(20)
    sensor = Sensor(frequencies=GRID, coherence=(target, target), noise_share=(noise_share, noise_share))
    frequencies, actual = signal.coherence(clean, run(clean, sensor), RATE, nperseg=512)
    assert actual[(frequencies > 300) & (frequencies < 7500)].mean() == pytest.approx(target, abs=0.09)
    assert band_db(run(clean, sensor), 1000, 4000) == pytest.approx(band_db(clean, 1000, 4000), abs=1.0)


def test_gains_vary_slowly_and_with_the_configured_deviation() -> None:
    time = np.arange(20 * RATE) / RATE
    tone = (0.1 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)
    output = run(tone, Sensor(frequencies=GRID, gain_spread_db=(4.0, 4.0), gain_seconds=0.2))
    level = 10 * np.log10(np.square(output).reshape(-1, 320).mean(1))  # per 20 ms
    assert level.std() == pytest.approx(4, rel=0.25)
    assert np.corrcoef(level[1:], level[:-1])[0, 1] > 0.9
    assert abs(np.corrcoef(level[40:], level[:-40])[0, 1]) < 0.3


def test_gains_that_depend_on_the_speech_repeat_with_it_and_differ_between_recordings() -> None:
    """Two sounds in turn: the gain from 1 to 1.5 kHz is the same for each sound, and another in another recording."""
    low, high = (
        signal.lfilter(*signal.butter(2, band, "band", fs=RATE), noise(20)) for band in ([200, 800], [2e3, 4e3])
    )
    is_low = np.arange(20 * RATE) // (RATE // 4) % 2 == 0  # a quarter of a second each
    clean = (np.where(is_low, low, high) + 0.1 * noise(20, seed=1)).astype(np.float32)

    def differences(speech_share: float) -> list[tuple[float, float]]:
        """Mean and standard deviation of the difference of gain in dB between neighboring sounds, by recording."""
        sensor = Sensor(frequencies=GRID, gain_spread_db=(5.0, 5.0), speech_share=speech_share)
        measured = []
        for seed in range(8):
            output = simulate(clean, RATE, sensor, seeded(1), recording=seeded(2, seed))
            powers = [
                np.square(signal.sosfilt(BANDPASS, x)).reshape(-1, RATE // 4)[:, 1000:3000].mean(1)
                for x in (output, clean)
            ]
            gains = 10 * np.log10(powers[0] / powers[1])
            measured.append(((gains[::2] - gains[1::2]).mean(), (gains[::2] - gains[1::2]).std()))
        return measured

    by_speech, at_random = np.array(differences(1.0)).T, np.array(differences(0.0)).T
    assert by_speech[0].std() > 4  # another function for each recording
    assert by_speech[1].mean() < 1.5  # which the random amplitude of noise changes a little
    assert np.abs(at_random[0]).max() < 2
    assert at_random[1].mean() > 4


@pytest.mark.parametrize("band_limit", [60.0, 120.0, 0.0])
def test_gains_that_depend_on_the_speech_are_finite_in_silence_and_for_the_narrowest_sensor(band_limit: float) -> None:
    sensor = Sensor(frequencies=GRID, gain_spread_db=(5.0, 5.0), speech_share=1.0, band_limit=band_limit)
    assert np.isfinite(run(noise(1), sensor)).all()
    assert not run(np.zeros(RATE, np.float32), sensor, level=-26.0).any()


def test_the_level_of_a_band_follows_itself_and_the_voice_by_the_slopes() -> None:
    """A tone at 3 kHz or the voice below it swells by 12 dB."""
    time = np.arange(4 * RATE) / RATE
    step = np.where(np.sin(np.pi * time) > 0, 2.0, 0.5)  # +-6 dB
    voice, hiss = 0.1 * np.sin(2 * np.pi * 200 * time), 0.02 * np.sin(2 * np.pi * 3000 * time)
    sensor = Sensor(frequencies=GRID, slope=(0.25, 0.25), voice_slope=(0.5, 0.5))

    def swing(clean: np.ndarray) -> float:
        output = run(clean.astype(np.float32), sensor)
        loud, quiet = (output[(step == s) & (np.abs(np.sin(np.pi * time)) > 0.5)] for s in (2.0, 0.5))
        return band_db(loud, 2900, 3100) - band_db(quiet, 2900, 3100)

    assert swing(voice + hiss * step) == pytest.approx(0.25 * 12, abs=0.7)
    assert swing(voice * step + hiss) == pytest.approx(0.5 * 12, abs=0.7)


def test_the_band_limit_removes_everything_above_it_except_rounding_noise() -> None:
    clean = noise(2)
    limited = Sensor(band_limit=4000.0, white_noise=0.01)
    assert band_db(run(clean, limited), 4200, 8000) < band_db(clean, 4200, 8000) - 60
    assert band_db(run(clean, limited), 100, 3800) == pytest.approx(band_db(clean, 100, 3800), abs=3.1)
    level = levels.active_level(clean, RATE)
    expected = level - 60 - 10 * np.log10(RATE / 2)
    output = run(clean, replace(limited, rounding_db=-60.0))
    assert band_db(output, 4300, 7900) == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
def test_the_noise_floor_has_the_configured_density_at_every_rate(sample_rate: int) -> None:
    clean = noise(2, sample_rate)
    sensor = Sensor(frequencies=(0.0, 1000.0, 1100.0, 8000.0), noise_db=(-50.0, -50.0, -70.0, -70.0))
    added = run(clean, sensor, sample_rate=sample_rate) - clean
    level = levels.active_level(clean, sample_rate)
    assert band_db(added, 200, 900, sample_rate) == pytest.approx(level - 50, abs=0.7)
    assert band_db(added, 1300, 3500, sample_rate) == pytest.approx(level - 70, abs=0.7)


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        ({"heart_db": 0.0}, 20, 60),
        ({"thump_db": 0.0, "thumps_per_second": 3.0}, 10, 120),
        ({"breath_db": 0.0}, 150, 1000),
        ({"ambient_db": 0.0}, 20, 300),
    ],
)
def test_sounds_of_body_and_room_have_their_bands_and_levels(
    settings: dict[str, float], low: float, high: float
) -> None:
    clean = noise(6)
    added = run(clean, Sensor(**settings)) - clean  # type: ignore[arg-type]
    assert band_db(added, low, high) > band_db(added, 5000, 8000) + 10
    quieter = run(clean, Sensor(**{**settings, next(iter(settings)): -20.0})) - clean  # type: ignore[arg-type]
    assert levels.rms(added) / levels.rms(quieter) == pytest.approx(10, rel=0.1)


def test_ambient_noise_passes_the_response_of_the_sensor() -> None:
    clean, room = noise(2), noise(2, seed=9)
    sensor = Sensor(frequencies=(0.0, 2000.0, 2200.0, 8000.0), response_db=(0.0, 0.0, -30.0, -30.0))
    added = run(clean, sensor, ambient=(room, -10.0)) - run(clean, sensor)
    level = levels.active_level(clean, RATE) - 20 * np.log10(levels.rms(room)) - 10
    assert band_db(added, 100, 1800) == pytest.approx(band_db(room, 100, 1800) + level, abs=0.3)
    assert band_db(added, 2500, 7000) == pytest.approx(band_db(room, 2500, 7000) + level - 30, abs=0.3)


def test_saturation_limits_the_peaks() -> None:
    clean = noise(1)
    output = run(clean, Sensor(headroom_db=3.0))
    assert np.abs(output).max() <= 10 ** ((levels.active_level(clean, RATE) + 3) / 20) + 1e-6


def test_saturation_is_a_hyperbolic_tangent() -> None:
    clean = noise(1)
    amplitude = 10 ** (levels.active_level(clean, RATE) / 20)
    ceiling = amplitude * 10 ** (3 / 20)
    output = run(clean, Sensor(headroom_db=3.0))
    np.testing.assert_allclose(output, ceiling * np.tanh(clean / ceiling), atol=1e-4)


def test_level_jitter_is_uniform_within_its_bounds() -> None:
    clean = noise(0.1)
    output = [run(clean, Sensor(level_jitter_db=6.0), seed) for seed in range(60)]
    gains = [20 * np.log10(levels.rms(x) / levels.rms(clean)) for x in output]
    assert max(map(abs, gains)) <= 6.001
    assert np.std(gains) == pytest.approx(6 / 3**0.5, rel=0.2)


def test_a_pause_has_noise_relative_to_the_given_speech_level() -> None:
    sensor = Sensor(white_noise=0.01)
    pause = run(np.zeros(RATE, np.float32), sensor, level=-26.0)
    assert 20 * np.log10(levels.rms(pause)) == pytest.approx(-66, abs=0.2)
    assert not run(np.zeros(RATE, np.float32), sensor).any()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("frames", [0, 1, 2, 100, 511])
def test_every_length_is_simulated(name: str, frames: int) -> None:
    output = run(np.full(frames, 0.1, np.float32), PRESETS[name])
    assert output.shape == (frames,)
    assert np.isfinite(output).all()


def test_a_simulated_file_depends_only_on_seed_and_name() -> None:
    clean = noise(0.5)[None]
    first = simulate_file(clean, RATE, PRESETS["throat"], 0, "a/x.wav")
    np.testing.assert_array_equal(first, simulate_file(clean, RATE, PRESETS["throat"], 0, "a/x.wav"))
    assert np.abs(first - simulate_file(clean, RATE, PRESETS["throat"], 0, "b/x.wav")).max() > 1e-3
    assert np.abs(first - simulate_file(clean, RATE, PRESETS["throat"], 1, "a/x.wav")).max() > 1e-3
    # independent of Python's string hashes, which differ between processes: this number is the same everywhere
    assert seeded(0, "a/x.wav").integers(1 << 30) == 66442450


def test_the_parts_of_a_long_file_have_independent_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 1.0)
    repeated = np.tile(noise(1), 4)
    output = simulate_file(repeated[None], RATE, Sensor(white_noise=0.1), 0, "x")[0]
    second, third = ((output - repeated)[index * RATE : (index + 1) * RATE - 2000] for index in (1, 2))
    assert second.std() == pytest.approx(third.std(), rel=0.05)
    assert abs(np.corrcoef(second, third)[0, 1]) < 0.1


def test_a_file_that_is_simulated_in_parts_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = np.stack([noise(3), noise(3, seed=1)])
    sensor = Sensor(cutoff=600.0, filter_jitter=0.2, frequencies=GRID, response_spread_db=(4.0, 4.0))
    whole = simulate_file(clean, RATE, sensor, 0, "x")
    monkeypatch.setattr(module, "PART", 1.0)
    parts = simulate_file(clean, RATE, sensor, 0, "x")
    assert parts.shape == clean.shape
    # the same filter throughout; levels of the parts differ a little
    error = levels.rms(parts - whole) / levels.rms(whole)
    assert error < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frequencies": (0.0, 100.0), "response_db": (1.0,)}, "response_db has 1 values, sensor.frequencies 2"),
        ({"frequencies": (100.0, 0.0)}, "must be two or more, increasing"),
        ({"frequencies": GRID, "coherence": (0.5, 1.5)}, "between 0 and 1"),
        ({"resonances": ((1.0, 2.0),)}, "resonances"),
        ({"resonances": ((0.0, 2.0, 6.0),)}, "resonances: frequencies and q must be positive"),
        ({"resonances": ((900.0, 0.0, 6.0),)}, "resonances: frequencies and q must be positive"),
        ({"white_noise": -1.0}, "white_noise is -1.0"),
        ({"thumps_per_second": -1.0}, "thumps_per_second is -1.0"),
        ({"filter_jitter": 20.0}, "filter_jitter is 20.0, must be at least 0 and below 1"),
        ({"resonance_jitter": 1.0}, "resonance_jitter is 1.0, must be"),
        ({"band_limit_jitter": -0.1}, "band_limit_jitter is -0.1, must be"),
        ({"q": 0.0}, "positive"),
    ],
)
def test_invalid_sensors_are_errors_that_name_the_field(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sensor(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRESETS)
def test_a_sensor_is_read_back_from_its_yaml_file(name: str, tmp_path: Path) -> None:
    sensor = PRESETS[name].sample(np.random.default_rng(0))
    save_sensor(tmp_path / "s.yaml", sensor, comment="one\ntwo")
    assert load_sensor(tmp_path / "s.yaml") == sensor
    assert (tmp_path / "s.yaml").read_text().startswith("# one\n# two\n")
    with pytest.raises(OutputError, match="exists already"):
        save_sensor(tmp_path / "s.yaml", sensor)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cutof: 600.0", "sensor.cutof: no such setting"),
        ("cutoff: high", "sensor.cutoff is 'high'"),
        ("- 1", "not a mapping"),
        ("a: [", "not YAML"),
        ("q: -1.0", "s.yaml: sensor.q"),
    ],
)
def test_an_invalid_sensor_file_is_an_error_of_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises((ConfigError, DataError), match=message) as error:
        load_sensor(tmp_path / "s.yaml")
    assert "\n" not in str(error.value)


def test_the_error_of_an_unknown_sensor_lists_the_presets() -> None:
    with pytest.raises(DataError, match="eben, throat, in-ear, forehead, temple"):
        load_sensor("trhoat")


def test_sampled_sensors_differ_and_come_close_to_every_preset(tmp_path: Path) -> None:
    sensors = [PRESETS["any"].sample(np.random.default_rng(seed)) for seed in range(300)]
    assert PRESETS["any"].sample(np.random.default_rng(7)) == sensors[7]
    assert len(set(sensors)) == len(sensors)
    index = PRESETS["throat"].frequencies.index(1800.0)  # Hz
    for name in ("throat", "in-ear", "forehead", "temple"):
        preset = PRESETS[name]
        near = [
            abs(s.response_db[index] - preset.response_db[index]) < 6
            and abs(s.slope[index] - preset.slope[index]) < 0.2
            for s in sensors
        ]
        assert any(near), name
    with pytest.raises(ConfigError, match="AnySensor is a family of sensors"):
        save_sensor(tmp_path / "s.yaml", PRESETS["any"])
