"""Batches: a function of (seed, step), level, in step, and of the mixture that was asked for."""

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
from twostage.data.manifest import Entry
from twostage.data.pairs import Cache, PairConfig, PairDataset, _pick, batches, equalize
from twostage.utils.errors import ConfigError, DataError

RATE = 16000
STILL = PairConfig(segment_length=4096, sensors=("eben",), joint_jitter_db=0.0, degraded_jitter_db=0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]) -> list[Entry]:
    """Three clean files and two pairs, whose bone channels are their air channels upside down, 100 samples late."""
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
    """Whether an item of the corpus above is a real pair: its two channels are opposite."""
    return bool(torch.corrcoef(torch.stack([degraded.reshape(-1), clean.reshape(-1)]))[0, 1] < -0.9)


def test_a_batch_is_a_function_of_seed_and_step(corpus: list[Entry]) -> None:
    config = PairConfig(segment_length=4096, sensors=("throat", "eben"), real_fraction=0.5, eq_db=3.0)
    first, again = PairDataset(corpus, config), PairDataset(corpus, config)
    again.batch(3, 0, 5)  # what was drawn before must not matter
    one, two = first.batch(4, 0, 2), again.batch(4, 0, 2)
    assert one.degraded.shape == one.clean.shape == (4, 1, 4096)
    assert one.degraded.dtype == one.clean.dtype == torch.float32
    assert torch.equal(one.degraded, two.degraded)
    assert torch.equal(one.clean, two.clean)
    assert not torch.equal(one.clean, first.batch(4, 0, 3).clean)
    assert not torch.equal(one.clean, first.batch(4, 1, 2).clean)


def test_each_segment_of_a_batch_depends_on_the_step(corpus: list[Entry]) -> None:
    # no real pairs: their share is drawn by step too, which would make batches differ by itself
    dataset = PairDataset(corpus, PairConfig(segment_length=4096, sensors=("throat",), real_fraction=0.0))
    one, two = dataset.batch(4, 0, 2).clean, dataset.batch(4, 0, 3).clean
    assert not any(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_stream_starts_where_it_is_told(corpus: list[Entry]) -> None:
    dataset = PairDataset(corpus, STILL)
    with closing(batches(dataset, 2, 7)) as stream, closing(batches(dataset, 2, 7, 3, prefetch=1)) as later:
        from_start, from_three = list(islice(stream, 5)), list(islice(later, 2))
    for one, two in zip(from_start[3:], from_three, strict=True):
        assert torch.equal(one.degraded, two.degraded)


def test_ranks_share_out_one_joint_batch(corpus: list[Entry]) -> None:
    dataset = PairDataset(corpus, replace(STILL, real_fraction=0.4))
    joint = dataset.batch(6, 0, 1)
    parts = [dataset.batch(2, 0, 1, rank=rank, world=3) for rank in range(3)]
    assert torch.equal(joint.degraded, torch.cat([part.degraded for part in parts]))
    assert torch.equal(joint.clean, torch.cat([part.clean for part in parts]))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_real_share_is_met_in_every_batch(corpus: list[Entry], share: float) -> None:
    dataset = PairDataset(corpus, replace(STILL, real_fraction=share))
    for step in range(4):
        degraded, clean = dataset.batch(8, 0, step)
        assert sum(is_real(d, c) for d, c in zip(degraded, clean, strict=True)) == share * 8


def test_real_pairs_are_at_other_places_of_another_batch(corpus: list[Entry]) -> None:
    dataset = PairDataset(corpus, replace(STILL, real_fraction=0.25))
    places = {tuple(is_real(*item) for item in zip(*dataset.batch(8, 0, step), strict=True)) for step in range(12)}
    assert len(places) > 1


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_share_of_segments_is_silent_on_the_degraded_side_alone(corpus: list[Entry], share: float) -> None:
    loud = PairDataset(corpus, STILL).batch(100, 0, 0)
    degraded, clean = PairDataset(corpus, replace(STILL, silent_prob=share)).batch(100, 0, 0)
    assert torch.equal(clean, loud.clean)  # what else is drawn stays
    silent = (degraded == 0).all(-1)[:, 0]
    assert torch.equal(degraded[~silent], loud.degraded[~silent])
    assert float(silent.float().mean()) == pytest.approx(share, abs=0.1)


def test_real_pairs_are_in_step_and_each_channel_level(corpus: list[Entry]) -> None:
    dataset = PairDataset(corpus, replace(STILL, real_fraction=1.0, segment_length=2 * RATE))
    pair = dataset.batch(4, 0, 0)
    torch.testing.assert_close(pair.degraded, -pair.clean, atol=3e-3, rtol=0)
    assert level(pair.clean[0]) == pytest.approx(levels.LEVEL, abs=0.5)


def test_delays_of_either_sign_are_undone(corpus: list[Entry]) -> None:
    """The same pair with its sides exchanged: then the degraded channel is ahead."""
    late = corpus[3]
    early = replace(late, clean=late.degraded, degraded=late.clean, delay=-late.delay)
    for entry in (late, early):
        degraded, clean = PairDataset([entry], replace(STILL, real_fraction=1.0, segment_length=8000)).batch(3, 0, 0)
        torch.testing.assert_close(degraded, -clean, atol=3e-3, rtol=0)


def test_simulated_pairs_are_level(corpus: list[Entry]) -> None:
    config = replace(STILL, segment_length=2 * RATE, sensors=("throat", "eben", "in-ear"))
    degraded, clean = PairDataset(corpus[:2], config).batch(6, 0, 0)
    for d, c in zip(degraded, clean, strict=True):
        assert level(c) == pytest.approx(levels.LEVEL, abs=0.5)
        assert level(d) == pytest.approx(levels.LEVEL, abs=2.5)  # thumps count


def test_jitter_moves_both_or_one(corpus: list[Entry]) -> None:
    still = PairDataset(corpus, replace(STILL, real_fraction=1.0)).batch(8, 0, 0)
    joint = PairDataset(corpus, replace(STILL, real_fraction=1.0, joint_jitter_db=6.0)).batch(8, 0, 0)
    alone = PairDataset(corpus, replace(STILL, real_fraction=1.0, degraded_jitter_db=6.0)).batch(8, 0, 0)
    gains = (
        (joint.clean.std(-1) / still.clean.std(-1)).squeeze(),
        (joint.degraded.std(-1) / still.degraded.std(-1)).squeeze(),
    )
    torch.testing.assert_close(*gains)
    assert 1.05 < gains[0].max() <= 2.0
    torch.testing.assert_close(alone.clean, still.clean)
    assert (alone.degraded.std(-1) / still.degraded.std(-1)).log().abs().max() > 0.05


@pytest.fixture
def tones(tmp_path: Path) -> Entry:
    """A pair of two seconds of 1 kHz."""
    tone = (0.1 * np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE)).astype(np.float32)
    for side in ("air", "bone"):
        sound_files.write(tmp_path / f"{side}.wav", tone, RATE, subtype="FLOAT")
    return Entry(str(tmp_path / "air.wav"), str(tmp_path / "bone.wav"), "s", 2.0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_speed_moves_pitch_and_tempo_of_both_sides_alike(tones: Entry, share: float) -> None:
    config = replace(STILL, segment_length=16000, sensors=(), real_fraction=share, speed=0.1)
    degraded, clean = PairDataset([tones], config).batch(16, 0, 0)
    assert clean.shape == (16, 1, 16000)
    torch.testing.assert_close(degraded, clean, atol=1e-3, rtol=0)
    pitches = 1.0 * torch.fft.rfft(clean[:, 0]).abs().argmax(-1)  # a second: bins are Hz
    assert 900 <= pitches.min() < 950
    assert 1050 < pitches.max() <= 1100
    assert (clean[..., -100:].abs().amax(-1) > 0.5 * clean.abs().amax(-1)).all()  # filled to the end, also when faster


def test_without_speed_a_tone_stays(tones: Entry) -> None:
    _, clean = PairDataset([tones], replace(STILL, segment_length=16000, real_fraction=1.0)).batch(2, 0, 0)
    assert torch.fft.rfft(clean[:, 0]).abs().argmax(-1).tolist() == [1000, 1000]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_speed_keeps_a_batch_a_function_of_seed_and_step(corpus: list[Entry], share: float) -> None:
    config = replace(STILL, real_fraction=share, speed=0.1)
    first, again = PairDataset(corpus, config), PairDataset(corpus, config)
    again.batch(3, 0, 5)
    one, two = first.batch(4, 0, 2), again.batch(4, 0, 2)
    assert torch.equal(one.degraded, two.degraded)
    assert torch.equal(one.clean, two.clean)
    assert not torch.equal(one.clean, PairDataset(corpus, replace(config, speed=0.0)).batch(4, 0, 2).clean)


def test_speed_keeps_real_pairs_in_step(corpus: list[Entry]) -> None:
    degraded, clean = PairDataset(corpus[3:], replace(STILL, segment_length=8000, real_fraction=1.0, speed=0.2)).batch(
        6, 0, 0
    )
    torch.testing.assert_close(degraded, -clean, atol=3e-3, rtol=0)


def test_the_gate_is_for_clean_speech_alone(corpus: list[Entry]) -> None:
    plain = PairDataset(corpus[3:], replace(STILL, segment_length=RATE, real_fraction=1.0, cache_gigabytes=1.0)).batch(
        2, 0, 0
    )
    for gigabytes in (1.0, 0.0):  # kept, and read again
        config = replace(STILL, segment_length=RATE, real_fraction=1.0, gate_db=30.0, cache_gigabytes=gigabytes)
        gated = PairDataset(corpus[3:], config).batch(2, 0, 0)
        assert torch.equal(gated.degraded, plain.degraded) or gigabytes == 0
        quietest = [pair.clean[:, 0].unfold(-1, 400, 400).std(-1).amin(-1) for pair in (gated, plain)]
        assert (quietest[0] < 0.3 * quietest[1]).all()


def test_only_the_degraded_side_is_equalized(corpus: list[Entry]) -> None:
    still = PairDataset(corpus, STILL).batch(2, 0, 0)
    varied = PairDataset(corpus, replace(STILL, eq_db=6.0, eq_prob=1.0)).batch(2, 0, 0)
    assert torch.equal(still.clean, varied.clean)
    assert (still.degraded - varied.degraded).abs().max() > 1e-3


def test_equalizer_is_smooth_and_of_its_deviation() -> None:
    pulse = np.zeros(4096, np.float32)
    pulse[0] = 1
    gains = [
        20 * np.log10(np.abs(np.fft.rfft(equalize(pulse, RATE, 4.0, np.random.default_rng(seed)))))
        for seed in range(60)
    ]
    assert np.std(gains) == pytest.approx(4.0, rel=0.15)
    assert np.abs(np.diff(gains, axis=1)).max() < 1.0  # 4 Hz apart


def test_sensors_are_drawn_by_their_weights(corpus: list[Entry]) -> None:
    config = replace(STILL, sensors=("eben", "throat"), sensor_weights=(0.0, 1.0))
    assert torch.equal(
        PairDataset(corpus, config).batch(4, 0, 0).degraded,
        PairDataset(corpus, replace(config, sensors=("in-ear", "throat"))).batch(4, 0, 0).degraded,
    )


def test_without_sensors_clean_speech_stays_clean(corpus: list[Entry]) -> None:
    degraded, clean = PairDataset(corpus, replace(STILL, sensors=())).batch(2, 0, 0)
    assert torch.equal(degraded, clean)


def test_room_sound_reaches_the_degraded_side(corpus: list[Entry]) -> None:
    config = replace(STILL, ambient_prob=1.0, ambient_db=(0.0, 0.0))
    quiet = PairDataset(corpus[:2], config).batch(2, 0, 0)
    loud = PairDataset(corpus[:2], config, noise=[corpus[4].clean or ""]).batch(2, 0, 0)
    assert (loud.degraded.std(-1) > 1.15 * quiet.degraded.std(-1)).all()


@pytest.fixture
def whistles(tmp_path: Path) -> list[str]:
    """Noise files of a tone each, of 3 and of 5 kHz, where what EBEN's filter leaves of speech is silent."""
    for hertz in (3000, 5000):
        tone = (0.1 * np.sin(2 * np.pi * hertz * np.arange(2 * RATE) / RATE)).astype(np.float32)
        sound_files.write(tmp_path / f"{hertz}.wav", tone, RATE)
    return [str(tmp_path / f"{hertz}.wav") for hertz in (3000, 5000)]


def whistled(audio: torch.Tensor) -> list[int]:
    """Hz of the whistle in each item (B, T), 0 where there is none."""
    spectra = torch.fft.rfft(audio).abs()
    tones = torch.stack([spectra[:, round(hertz * audio.shape[-1] / RATE)] for hertz in (3000, 5000)])
    return [(3000, 5000)[int(place)] if size > 20 else 0 for size, place in zip(*tones.max(0), strict=True)]


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_a_share_of_segments_hears_the_room(corpus: list[Entry], whistles: list[str], share: float) -> None:
    config = replace(STILL, ambient_prob=share, ambient_db=(-6.0, -6.0))
    frequencies = whistled(PairDataset(corpus[:2], config, noise=whistles).batch(100, 0, 0).degraded[:, 0])
    assert sum(map(bool, frequencies)) / 100 == pytest.approx(share, abs=0.12)
    assert set(frequencies) == {0, 3000, 5000}


def test_both_microphones_hear_one_room(corpus: list[Entry], whistles: list[str]) -> None:
    config = replace(STILL, ambient_prob=1.0, ambient_db=(-6.0, -6.0), air_snr_db=(0.0, 0.0))
    degraded = PairDataset(corpus[:2], config, noise=whistles).batch(12, 0, 0).degraded
    assert whistled(degraded[:, 0]) == whistled(degraded[:, 1])
    assert set(whistled(degraded[:, 0])) == {3000, 5000}


def test_pairs_are_simulated_upon_if_asked(corpus: list[Entry]) -> None:
    for asked, speakers in ((False, {"s0", "s1", "s2"}), (True, {"s0", "s1", "s2", "s3", "s4"})):
        dataset = PairDataset(corpus, replace(STILL, simulate_on_pairs=asked))
        assert {entry.speaker for entry in dataset.clean} == speakers
    lone = PairDataset(corpus[3:], STILL).batch(4, 0, 0)  # there is no other clean speech
    assert not any(is_real(d, c) for d, c in zip(lone.degraded, lone.clean, strict=True))


def test_short_files_are_padded_and_long_ones_cut_anywhere(corpus: list[Entry]) -> None:
    dataset = PairDataset(corpus[:1], replace(STILL, segment_length=3 * RATE))
    clean = dataset.batch(4, 0, 0).clean
    assert ((clean != 0).sum(-1) <= RATE).all()
    starts = [int((row != 0).nonzero()[0]) for row in clean[:, 0]]
    assert len(set(starts)) == 4


def test_every_second_of_speech_is_as_likely(corpus: list[Entry]) -> None:
    short, long = replace(corpus[0], seconds=1.0), replace(corpus[1], seconds=4.0)
    dataset = PairDataset([short, long], replace(STILL, sensors=(), segment_length=256))
    picked = [
        dataset.clean[_pick(dataset._clean_cumulative, np.random.default_rng(seed))].speaker for seed in range(400)
    ]
    assert picked.count("s1") / 400 == pytest.approx(0.8, abs=0.06)


def test_what_does_not_fit_into_memory_is_not_kept(corpus: list[Entry]) -> None:
    paths = [entry.clean or "" for entry in corpus[:3]]
    cache = Cache(RATE, room=2.0 * 2 * RATE)  # bytes: one file of two seconds, or two of one
    lengths = [cache.describe(path)[0] for path in paths]
    assert lengths == [RATE, 2 * RATE, RATE]
    assert list(cache._samples) == [paths[0], paths[2]]
    assert cache.room == 0


def test_what_does_not_fit_into_memory_is_read_again(corpus: list[Entry]) -> None:
    kept = PairDataset(corpus, replace(STILL, real_fraction=0.5)).batch(6, 0, 0)
    read = PairDataset(corpus, replace(STILL, real_fraction=0.5, cache_gigabytes=0.0)).batch(6, 0, 0)
    torch.testing.assert_close(kept.clean, read.clean, atol=1e-4, rtol=0)
    torch.testing.assert_close(kept.degraded, read.degraded, atol=1e-3, rtol=0)


def test_other_rates_are_resampled(tmp_path: Path, corpus: list[Entry]) -> None:
    sound, _ = sound_files.read(corpus[1].clean or "")
    sound_files.write(tmp_path / "x.wav", sound_files.resample(sound, RATE, 44100), 44100)
    entry = replace(corpus[1], clean=str(tmp_path / "x.wav"))
    for gigabytes in (1.0, 0.0):
        config = replace(STILL, sensors=(), cache_gigabytes=gigabytes)
        ours = PairDataset([corpus[1]], config).batch(3, 0, 0)
        resampled = PairDataset([entry], config).batch(3, 0, 0)
        torch.testing.assert_close(ours.clean[..., 64:-64], resampled.clean[..., 64:-64], atol=1e-2, rtol=0)


def test_closing_the_stream_stops_its_thread(corpus: list[Entry]) -> None:
    with closing(batches(PairDataset(corpus, STILL), 1, 0)) as stream:
        next(stream)
        assert any(thread.name.startswith("pairs") for thread in threading.enumerate())
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("pairs") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    dataset = PairDataset([Entry(str(tmp_path / "gone.wav"), None, "p", 1.0)], STILL)
    with closing(batches(dataset, 1, 0)) as stream, pytest.raises(Exception, match=r"gone\.wav: no such file"):
        next(stream)


def test_what_is_missing_is_named(corpus: list[Entry]) -> None:
    with pytest.raises(DataError, match=r"real_fraction is 0\.5"):
        PairDataset(corpus[:3], replace(STILL, real_fraction=0.5))
    with pytest.raises(DataError, match="no entry has a clean file"):
        PairDataset([Entry(None, "x.wav", "p", 1.0)], STILL)
    with pytest.raises(DataError, match="sensor throta: neither"):
        PairDataset(corpus, replace(STILL, sensors=("throta",)))


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
def test_impossible_settings_name_the_field(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PairConfig(**settings)  # type: ignore[arg-type]
