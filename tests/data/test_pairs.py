"""Tests of batches of pairs: reproducible by seed and step, aligned, at equal level, with the configured mixture."""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from twostage.audio import levels, sound_files
from twostage.data.aligned_pair import read_mono
from twostage.data.manifest import Entry
from twostage.data.pairs import Cache, PairConfig, PairDataset, _pick, batches, equalize
from twostage.utils.errors import ConfigError, DataError

RATE = 16000
UNVARIED = PairConfig(segment_length=4096, sensors=("eben",), joint_jitter_db=0.0, degraded_jitter_db=0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]) -> list[Entry]:
    """Three clean files and two pairs, whose bone channel is the air channel inverted and 100 samples late."""
    root = tmp_path_factory.mktemp("corpus")
    entries = []
    for i in range(5):
        clean = speech(RATE * (1 + i % 2), seed=i) * 10 ** (-i / 10)
        sound_files.write(root / f"{i}.flac", clean, RATE)
        entries.append(Entry(str(root / f"{i}.flac"), None, f"s{i}", len(clean) / RATE))
        if i >= 3:
            sound_files.write(root / f"{i}_bone.flac", -0.3 * np.pad(clean, (100, 0)), RATE)
            entries[-1] = replace(entries[-1], degraded=str(root / f"{i}_bone.flac"), delay=100 / RATE)
    return entries


def level(signal: torch.Tensor) -> float:
    return levels.active_level(signal.reshape(-1).numpy(), RATE)


def is_real(degraded: torch.Tensor, clean: torch.Tensor) -> bool:
    """Whether an item of the corpus above is a real pair: the channels of real pairs have opposite signs."""
    return bool(torch.corrcoef(torch.stack([degraded.reshape(-1), clean.reshape(-1)]))[0, 1] < -0.9)


def test_a_batch_depends_only_on_seed_and_step(corpus: list[Entry]) -> None:
    config = PairConfig(segment_length=4096, sensors=("throat", "eben"), real_fraction=0.5, eq_db=3.0)
    first, second = PairDataset(corpus, config), PairDataset(corpus, config)
    second.batch(3, 0, 5)  # an earlier batch must not matter
    batch, same_batch = first.batch(4, 0, 2), second.batch(4, 0, 2)
    assert batch.degraded.shape == batch.clean.shape == (4, 1, 4096)
    assert batch.degraded.dtype == batch.clean.dtype == torch.float32
    assert torch.equal(batch.degraded, same_batch.degraded)
    assert torch.equal(batch.clean, same_batch.clean)
    assert not torch.equal(batch.clean, first.batch(4, 0, 3).clean)
    assert not torch.equal(batch.clean, first.batch(4, 1, 2).clean)


def test_each_segment_of_a_batch_depends_on_the_step(corpus: list[Entry]) -> None:
    # no real pairs: their positions depend on the step too, which alone would make the batches differ
    dataset = PairDataset(corpus, PairConfig(segment_length=4096, sensors=("throat",), real_fraction=0.0))
    batch, next_batch = dataset.batch(4, 0, 2).clean, dataset.batch(4, 0, 3).clean
    assert not any(torch.equal(a, b) for a, b in zip(batch, next_batch, strict=True))


def test_the_stream_of_batches_starts_at_the_given_step(corpus: list[Entry]) -> None:
    dataset = PairDataset(corpus, UNVARIED)
    with closing(batches(dataset, 2, 7)) as stream, closing(batches(dataset, 2, 7, 3, prefetch=1)) as later:
        from_start, from_three = list(islice(stream, 5)), list(islice(later, 2))
    for expected, actual in zip(from_start[3:], from_three, strict=True):
        assert torch.equal(expected.degraded, actual.degraded)


def test_the_batches_of_all_ranks_form_the_joint_batch(corpus: list[Entry]) -> None:
    dataset = PairDataset(corpus, replace(UNVARIED, real_fraction=0.4))
    joint = dataset.batch(6, 0, 1)
    parts = [dataset.batch(2, 0, 1, rank=rank, world=3) for rank in range(3)]
    assert torch.equal(joint.degraded, torch.cat([part.degraded for part in parts]))
    assert torch.equal(joint.clean, torch.cat([part.clean for part in parts]))


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_every_batch_has_the_configured_fraction_of_real_pairs(corpus: list[Entry], fraction: float) -> None:
    dataset = PairDataset(corpus, replace(UNVARIED, real_fraction=fraction))
    for step in range(4):
        degraded, clean = dataset.batch(8, 0, step)
        assert sum(is_real(d, c) for d, c in zip(degraded, clean, strict=True)) == fraction * 8


def test_the_positions_of_real_pairs_vary_between_batches(corpus: list[Entry]) -> None:
    dataset = PairDataset(corpus, replace(UNVARIED, real_fraction=0.25))
    positions = {tuple(is_real(*item) for item in zip(*dataset.batch(8, 0, step), strict=True)) for step in range(12)}
    assert len(positions) > 1


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_the_configured_fraction_of_segments_is_silent_on_the_degraded_side(
    corpus: list[Entry], fraction: float
) -> None:
    loud = PairDataset(corpus, UNVARIED).batch(100, 0, 0)
    degraded, clean = PairDataset(corpus, replace(UNVARIED, silent_prob=fraction)).batch(100, 0, 0)
    assert torch.equal(clean, loud.clean)  # everything else that is sampled stays the same
    silent = (degraded == 0).all(-1)[:, 0]
    assert torch.equal(degraded[~silent], loud.degraded[~silent])
    assert float(silent.float().mean()) == pytest.approx(fraction, abs=0.1)


def test_real_pairs_are_aligned_and_at_the_same_level(corpus: list[Entry]) -> None:
    dataset = PairDataset(corpus, replace(UNVARIED, real_fraction=1.0, segment_length=2 * RATE))
    pair = dataset.batch(4, 0, 0)
    torch.testing.assert_close(pair.degraded, -pair.clean, atol=3e-3, rtol=0)
    assert level(pair.clean[0]) == pytest.approx(levels.LEVEL, abs=0.5)


def test_delays_of_either_sign_are_corrected(corpus: list[Entry]) -> None:
    """The second pair is the first one with its sides exchanged, so that the degraded channel leads."""
    late = corpus[3]
    early = replace(late, clean=late.degraded, degraded=late.clean, delay=-late.delay)
    for entry in (late, early):
        degraded, clean = PairDataset([entry], replace(UNVARIED, real_fraction=1.0, segment_length=8000)).batch(3, 0, 0)
        torch.testing.assert_close(degraded, -clean, atol=3e-3, rtol=0)


def test_simulated_pairs_have_the_usual_level(corpus: list[Entry]) -> None:
    config = replace(UNVARIED, segment_length=2 * RATE, sensors=("throat", "eben", "in-ear"))
    degraded, clean = PairDataset(corpus[:2], config).batch(6, 0, 0)
    for d, c in zip(degraded, clean, strict=True):
        assert level(c) == pytest.approx(levels.LEVEL, abs=0.5)
        assert level(d) == pytest.approx(levels.LEVEL, abs=2.5)  # thumps count toward the level


def test_level_jitter_changes_both_sides_or_only_the_degraded_one(corpus: list[Entry]) -> None:
    unvaried = PairDataset(corpus, replace(UNVARIED, real_fraction=1.0)).batch(8, 0, 0)
    joint = PairDataset(corpus, replace(UNVARIED, real_fraction=1.0, joint_jitter_db=6.0)).batch(8, 0, 0)
    degraded_only = PairDataset(corpus, replace(UNVARIED, real_fraction=1.0, degraded_jitter_db=6.0)).batch(8, 0, 0)
    gains = (
        (joint.clean.std(-1) / unvaried.clean.std(-1)).squeeze(),
        (joint.degraded.std(-1) / unvaried.degraded.std(-1)).squeeze(),
    )
    torch.testing.assert_close(*gains)
    assert 1.05 < gains[0].max() <= 2.0
    torch.testing.assert_close(degraded_only.clean, unvaried.clean)
    assert (degraded_only.degraded.std(-1) / unvaried.degraded.std(-1)).log().abs().max() > 0.05


@pytest.fixture
def tones(tmp_path: Path) -> Entry:
    """A pair of two seconds of 1 kHz."""
    tone = (0.1 * np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE)).astype(np.float32)
    for side in ("air", "bone"):
        sound_files.write(tmp_path / f"{side}.wav", tone, RATE, subtype="FLOAT")
    return Entry(str(tmp_path / "air.wav"), str(tmp_path / "bone.wav"), "s", 2.0)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_speed_changes_pitch_and_tempo_of_both_sides_alike(tones: Entry, fraction: float) -> None:
    config = replace(UNVARIED, segment_length=16000, sensors=(), real_fraction=fraction, speed=0.1)
    degraded, clean = PairDataset([tones], config).batch(16, 0, 0)
    assert clean.shape == (16, 1, 16000)
    torch.testing.assert_close(degraded, clean, atol=1e-3, rtol=0)
    pitches = 1.0 * torch.fft.rfft(clean[:, 0]).abs().argmax(-1)  # of one second, so that bins are Hz
    assert 900 <= pitches.min() < 950
    assert 1050 < pitches.max() <= 1100
    assert (clean[..., -100:].abs().amax(-1) > 0.5 * clean.abs().amax(-1)).all()  # filled to the end, also when faster


def test_without_speed_the_pitch_stays(tones: Entry) -> None:
    _, clean = PairDataset([tones], replace(UNVARIED, segment_length=16000, real_fraction=1.0)).batch(2, 0, 0)
    assert torch.fft.rfft(clean[:, 0]).abs().argmax(-1).tolist() == [1000, 1000]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_with_speed_a_batch_still_depends_only_on_seed_and_step(corpus: list[Entry], fraction: float) -> None:
    config = replace(UNVARIED, real_fraction=fraction, speed=0.1)
    first, second = PairDataset(corpus, config), PairDataset(corpus, config)
    second.batch(3, 0, 5)
    batch, same_batch = first.batch(4, 0, 2), second.batch(4, 0, 2)
    assert torch.equal(batch.degraded, same_batch.degraded)
    assert torch.equal(batch.clean, same_batch.clean)
    assert not torch.equal(batch.clean, PairDataset(corpus, replace(config, speed=0.0)).batch(4, 0, 2).clean)


def test_with_speed_real_pairs_stay_aligned(corpus: list[Entry]) -> None:
    degraded, clean = PairDataset(
        corpus[3:], replace(UNVARIED, segment_length=8000, real_fraction=1.0, speed=0.2)
    ).batch(6, 0, 0)
    torch.testing.assert_close(degraded, -clean, atol=3e-3, rtol=0)


def test_the_gate_is_applied_to_the_clean_side_only(corpus: list[Entry]) -> None:
    ungated = PairDataset(
        corpus[3:], replace(UNVARIED, segment_length=RATE, real_fraction=1.0, cache_gigabytes=1.0)
    ).batch(2, 0, 0)
    for gigabytes in (1.0, 0.0):  # kept in memory, and read again
        config = replace(UNVARIED, segment_length=RATE, real_fraction=1.0, gate_db=30.0, cache_gigabytes=gigabytes)
        gated = PairDataset(corpus[3:], config).batch(2, 0, 0)
        assert torch.equal(gated.degraded, ungated.degraded) or gigabytes == 0
        quietest = [pair.clean[:, 0].unfold(-1, 400, 400).std(-1).amin(-1) for pair in (gated, ungated)]
        assert (quietest[0] < 0.3 * quietest[1]).all()


def test_only_the_degraded_side_is_equalized(corpus: list[Entry]) -> None:
    unvaried = PairDataset(corpus, UNVARIED).batch(2, 0, 0)
    equalized = PairDataset(corpus, replace(UNVARIED, eq_db=6.0, eq_prob=1.0)).batch(2, 0, 0)
    assert torch.equal(unvaried.clean, equalized.clean)
    assert (unvaried.degraded - equalized.degraded).abs().max() > 1e-3


def test_the_equalizer_is_smooth_and_has_the_configured_deviation() -> None:
    pulse = np.zeros(4096, np.float32)
    pulse[0] = 1
    gains = [
        20 * np.log10(np.abs(np.fft.rfft(equalize(pulse, RATE, 4.0, np.random.default_rng(seed)))))
        for seed in range(60)
    ]
    assert np.std(gains) == pytest.approx(4.0, rel=0.15)
    assert np.abs(np.diff(gains, axis=1)).max() < 1.0  # 4 Hz apart


def test_sensors_are_sampled_by_their_weights(corpus: list[Entry]) -> None:
    config = replace(UNVARIED, sensors=("eben", "throat"), sensor_weights=(0.0, 1.0))
    assert torch.equal(
        PairDataset(corpus, config).batch(4, 0, 0).degraded,
        PairDataset(corpus, replace(config, sensors=("in-ear", "throat"))).batch(4, 0, 0).degraded,
    )


def test_without_sensors_the_degraded_side_is_the_clean_speech(corpus: list[Entry]) -> None:
    degraded, clean = PairDataset(corpus, replace(UNVARIED, sensors=())).batch(2, 0, 0)
    assert torch.equal(degraded, clean)


def test_ambient_noise_is_added_to_the_degraded_side(corpus: list[Entry]) -> None:
    config = replace(UNVARIED, ambient_prob=1.0, ambient_db=(0.0, 0.0))
    quiet = PairDataset(corpus[:2], config).batch(2, 0, 0)
    loud = PairDataset(corpus[:2], config, noise=[corpus[4].clean or ""]).batch(2, 0, 0)
    assert (loud.degraded.std(-1) > 1.15 * quiet.degraded.std(-1)).all()


@pytest.fixture
def noise_tones(tmp_path: Path) -> list[str]:
    """Two noise files with a tone of 3 or 5 kHz, where EBEN's low-pass leaves no speech."""
    for hertz in (3000, 5000):
        tone = (0.1 * np.sin(2 * np.pi * hertz * np.arange(2 * RATE) / RATE)).astype(np.float32)
        sound_files.write(tmp_path / f"{hertz}.wav", tone, RATE)
    return [str(tmp_path / f"{hertz}.wav") for hertz in (3000, 5000)]


def tone_frequencies(audio: torch.Tensor) -> list[int]:
    """The frequency in Hz of the tone in each item of audio (B, T), or 0 without a tone."""
    spectra = torch.fft.rfft(audio).abs()
    tones = torch.stack([spectra[:, round(hertz * audio.shape[-1] / RATE)] for hertz in (3000, 5000)])
    return [(3000, 5000)[int(index)] if magnitude > 20 else 0 for magnitude, index in zip(*tones.max(0), strict=True)]


@pytest.mark.parametrize("fraction", [0.2, 0.8])
def test_the_configured_fraction_of_segments_has_ambient_noise(
    corpus: list[Entry], noise_tones: list[str], fraction: float
) -> None:
    config = replace(UNVARIED, ambient_prob=fraction, ambient_db=(-6.0, -6.0))
    frequencies = tone_frequencies(PairDataset(corpus[:2], config, noise=noise_tones).batch(100, 0, 0).degraded[:, 0])
    assert sum(map(bool, frequencies)) / 100 == pytest.approx(fraction, abs=0.12)
    assert set(frequencies) == {0, 3000, 5000}


def test_both_microphones_record_the_same_ambient_noise(corpus: list[Entry], noise_tones: list[str]) -> None:
    config = replace(UNVARIED, ambient_prob=1.0, ambient_db=(-6.0, -6.0), air_snr_db=(0.0, 0.0))
    degraded = PairDataset(corpus[:2], config, noise=noise_tones).batch(12, 0, 0).degraded
    assert tone_frequencies(degraded[:, 0]) == tone_frequencies(degraded[:, 1])
    assert set(tone_frequencies(degraded[:, 0])) == {3000, 5000}


def test_pairs_are_used_for_simulation_only_if_configured(corpus: list[Entry]) -> None:
    for configured, speakers in ((False, {"s0", "s1", "s2"}), (True, {"s0", "s1", "s2", "s3", "s4"})):
        dataset = PairDataset(corpus, replace(UNVARIED, simulate_on_pairs=configured))
        assert {entry.speaker for entry in dataset.clean} == speakers
    simulated = PairDataset(corpus[3:], UNVARIED).batch(4, 0, 0)  # there is no other clean speech
    assert not any(is_real(d, c) for d, c in zip(simulated.degraded, simulated.clean, strict=True))


def test_short_files_are_padded_at_random_positions(corpus: list[Entry]) -> None:
    dataset = PairDataset(corpus[:1], replace(UNVARIED, segment_length=3 * RATE))
    clean = dataset.batch(4, 0, 0).clean
    assert ((clean != 0).sum(-1) <= RATE).all()
    starts = [int((row != 0).nonzero()[0]) for row in clean[:, 0]]
    assert len(set(starts)) == 4


def test_files_are_sampled_in_proportion_to_their_length(corpus: list[Entry]) -> None:
    short, long = replace(corpus[0], seconds=1.0), replace(corpus[1], seconds=4.0)
    dataset = PairDataset([short, long], replace(UNVARIED, sensors=(), segment_length=256))
    picked = [
        dataset.clean[_pick(dataset._clean_cumulative, np.random.default_rng(seed))].speaker for seed in range(400)
    ]
    assert picked.count("s1") / 400 == pytest.approx(0.8, abs=0.06)


def test_files_are_kept_in_memory_only_up_to_the_limit(corpus: list[Entry]) -> None:
    paths = [entry.clean or "" for entry in corpus[:3]]
    cache = Cache(RATE, room=2.0 * 2 * RATE)  # bytes: one file of two seconds, or two files of one second
    lengths = [cache.describe(path)[0] for path in paths]
    assert lengths == [RATE, 2 * RATE, RATE]
    assert list(cache._samples) == [paths[0], paths[2]]
    assert cache.room == 0


def test_files_that_are_not_in_memory_are_read_with_the_same_result(corpus: list[Entry]) -> None:
    from_memory = PairDataset(corpus, replace(UNVARIED, real_fraction=0.5)).batch(6, 0, 0)
    from_files = PairDataset(corpus, replace(UNVARIED, real_fraction=0.5, cache_gigabytes=0.0)).batch(6, 0, 0)
    torch.testing.assert_close(from_memory.clean, from_files.clean, atol=1e-4, rtol=0)
    torch.testing.assert_close(from_memory.degraded, from_files.degraded, atol=1e-3, rtol=0)


def white(samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
@pytest.mark.parametrize("first", [-3000, 20000, 20001, 20079])
def test_files_of_other_sample_rates_are_read_at_the_same_position_as_in_memory(
    tmp_path: Path, rate: int, first: int
) -> None:
    sound = white(4 * rate)
    sound_files.write(tmp_path / "x.wav", sound, rate)
    in_memory, from_file = (Cache(RATE, room).segment(str(tmp_path / "x.wav"), first, 8000) for room in (1e9, 0.0))
    assert np.abs(in_memory - from_file).max() < 1e-3 * np.abs(in_memory).max()


@pytest.mark.parametrize("peak", [1e-4, 0.5, 3.0])
def test_a_recording_in_memory_keeps_its_level_however_quiet_or_loud(tmp_path: Path, peak: float) -> None:
    sound = white(2 * RATE)
    sound = sound * np.float32(peak / np.abs(sound).max())
    sound_files.write(tmp_path / "x.wav", sound, RATE, subtype="FLOAT")
    segment = Cache(RATE, 1e9).segment(str(tmp_path / "x.wav"), 0, 2 * RATE)
    expected = read_mono(str(tmp_path / "x.wav"), RATE)
    assert np.abs(expected).max() > 0.8 * peak
    assert np.abs(segment - expected).max() < 1e-4 * peak


def test_files_of_other_sample_rates_are_resampled(tmp_path: Path, corpus: list[Entry]) -> None:
    sound, _ = sound_files.read(corpus[1].clean or "")
    sound_files.write(tmp_path / "x.wav", sound_files.resample(sound, RATE, 44100), 44100)
    entry = replace(corpus[1], clean=str(tmp_path / "x.wav"))
    for gigabytes in (1.0, 0.0):
        config = replace(UNVARIED, sensors=(), cache_gigabytes=gigabytes)
        original = PairDataset([corpus[1]], config).batch(3, 0, 0)
        resampled = PairDataset([entry], config).batch(3, 0, 0)
        torch.testing.assert_close(original.clean[..., 64:-64], resampled.clean[..., 64:-64], atol=1e-2, rtol=0)


def test_closing_the_stream_stops_its_thread(corpus: list[Entry]) -> None:
    with closing(batches(PairDataset(corpus, UNVARIED), 1, 0)) as stream:
        next(stream)
        assert any(thread.name.startswith("pairs") for thread in threading.enumerate())
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("pairs") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    dataset = PairDataset([Entry(str(tmp_path / "gone.wav"), None, "p", 1.0)], UNVARIED)
    with closing(batches(dataset, 1, 0)) as stream, pytest.raises(Exception, match=r"gone\.wav: no such file"):
        next(stream)


def test_missing_pairs_clean_files_and_sensors_are_named(corpus: list[Entry]) -> None:
    with pytest.raises(DataError, match=r"real_fraction is 0\.5"):
        PairDataset(corpus[:3], replace(UNVARIED, real_fraction=0.5))
    with pytest.raises(DataError, match="no entry has a clean file"):
        PairDataset([Entry(None, "x.wav", "p", 1.0)], UNVARIED)
    with pytest.raises(DataError, match="sensor throta: neither"):
        PairDataset(corpus, replace(UNVARIED, sensors=("throta",)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segment_length": 0}, "data.segment_length"),
        ({"real_fraction": 1.5}, "data.real_fraction is 1.5"),
        ({"sensor_weights": (1.0, 2.0)}, "data.sensor_weights has 2 values, data.sensors 1"),
        ({"sensor_weights": (-1.0,)}, "data.sensor_weights"),
        ({"speed": 1.0}, "data.speed must be 0 to below 1"),
        ({"gate_db": -1.0}, "data.gate_db not negative"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PairConfig(**settings)  # type: ignore[arg-type]
