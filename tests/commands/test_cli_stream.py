"""Tests of the command stream: raw PCM in pipes, a file in real time, a microphone, and error messages."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streams import FakeDevices, causal_model, noise, offline

from twostage import cli
from twostage.audio import sound_files
from twostage.inference.realtime import Pcm, Timing, pipe, rechunk, run_duplex
from twostage.inference.stream import Stream
from twostage.utils.errors import AudioError


def piped(data: bytes, format: str = "f32") -> bytes:
    """What ``pipe`` writes when it reads these bytes from an operating-system pipe."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    sink = io.BytesIO()
    with open(reader, "rb") as source:
        pipe(Stream(causal_model()), source, sink, Pcm(format))
    return sink.getvalue()


def test_float_samples_in_a_pipe_are_restored_like_offline() -> None:
    sound = noise(5000)
    actual = np.frombuffer(piped(sound.tobytes()), "<f4")
    np.testing.assert_allclose(actual, offline(causal_model(), sound), atol=1e-5, rtol=0)


def test_integer_samples_in_a_pipe_are_restored_like_offline_up_to_rounding() -> None:
    sound = np.round(noise(5000) * 32768).astype("<i2")
    actual = np.frombuffer(piped(sound.tobytes(), "s16"), "<i2")
    np.testing.assert_allclose(
        actual / 32768, offline(causal_model(), (sound / 32768).astype(np.float32)), atol=6e-5, rtol=0
    )


def test_pcm_decodes_partial_samples_and_clips_at_full_scale() -> None:
    pcm = Pcm("s16")
    data = np.array([1, -2, 300, -32768], "<i2").tobytes()
    parts = [pcm.decode(data[:3]), pcm.decode(data[3:4]), pcm.decode(data[4:])]
    np.testing.assert_array_equal(np.concatenate(parts) * 32768, [1, -2, 300, -32768])
    assert np.frombuffer(pcm.encode(np.array([0.5, 1.0, -1.5], np.float32)), "<i2").tolist() == [16384, 32767, -32768]
    assert pcm.clipped == 2


def test_a_wav_file_in_the_pipe_is_refused() -> None:
    with pytest.raises(AudioError, match=r"a WAV file, wanted raw PCM \(with arecord: -t raw\)"):
        piped(b"RIFF" + bytes(100))


@pytest.mark.parametrize("suffix", ["rf64", "w64", "aiff", "flac", "ogg", "mp3"])
def test_a_sound_file_in_the_pipe_is_refused_instead_of_played_as_samples(suffix: str, tmp_path: Path) -> None:
    sound_files.write(tmp_path / f"a.{suffix}", noise(16000)[None], 16000)
    with pytest.raises(AudioError, match=r"standard input: an? .* file, wanted raw PCM"):
        piped((tmp_path / f"a.{suffix}").read_bytes()[:60000])


def test_rechunk_yields_hops_of_equal_length() -> None:
    blocks = list(rechunk([np.arange(5.0), np.arange(5.0, 6.0), np.arange(6.0, 17.0)], 4))
    assert [len(block) for block in blocks] == [4, 4, 4, 4, 1]
    assert np.concatenate(blocks).tolist() == list(range(17))


def test_timing_reports_late_hops_and_percentiles() -> None:
    timing = Timing.of([0.001] * 98 + [0.003, 0.02], hop=0.016, latency=0.048, seconds=1.6)
    assert (timing.hops, timing.late, timing.median_ms, timing.worst_ms) == (100, 1, 1.0, 20.0)
    assert timing.p99_ms == pytest.approx(3.17)
    assert timing.real_time_factor == pytest.approx(0.121 / 1.6)
    assert Timing.of([], 0.016, 0.048, 0.0).real_time_factor == 0.0


def test_a_streamed_file_equals_the_offline_output(
    causal_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = noise(9000)
    sound_files.write(tmp_path / "a.wav", np.stack([sound, -sound]), 16000, subtype="FLOAT")
    command = ["stream", "--model", causal_path, "--file", str(tmp_path / "a.wav"), "--gain", "6"]
    assert cli.main([*command, "-o", str(tmp_path / "b.wav"), "--json", str(tmp_path / "t.json")]) == 0
    actual, rate = sound_files.read(tmp_path / "b.wav")
    gain = np.float32(10 ** (6 / 20))
    assert (rate, actual.shape) == (16000, (1, 9000))
    expected = offline(causal_model(), sound * gain) / gain
    np.testing.assert_allclose(actual[0], expected, atol=6e-5, rtol=0)  # written as 16 bits
    report = json.loads((tmp_path / "t.json").read_text())
    assert (report["hops"], report["latency_ms"], report["hop_ms"], report["gain_db"]) == (36, 48.0, 16.0, 6.0)
    assert report["median_ms"] <= report["p99_ms"] <= report["worst_ms"]
    assert "latency 48 ms, in hops of 16 ms" in capsys.readouterr().out


def test_a_quiet_file_is_amplified_to_the_level_of_the_model(
    causal_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound_files.write(tmp_path / "a.wav", 0.01 * noise(32000)[None], 32000)
    assert (
        cli.main(["stream", "--model", causal_path, "--file", str(tmp_path / "a.wav"), "-o", str(tmp_path / "b.flac")])
        == 0
    )
    # half the power of white noise lies above 8 kHz, beyond the band of the model
    assert "gain +3" in capsys.readouterr().out
    assert sound_files.info(tmp_path / "b.flac").frames == 16000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--file", "a.wav", "-o", "b.wav"], "b.wav: exists"),
        (["--file", "none.wav"], "none.wav"),
        (["--file", "a.wav", "--gain", "loud"], "--gain loud: must be a number of dB"),
        (["--live", "--gain", "auto"], "--gain auto: measures a file"),
        (["--live", "-o", "c.wav"], "--out goes with --file"),
        (["--file", "a.wav", "--threads", "0"], "--threads 0"),
        (["--file", "a.wav", "--seconds", "0"], "seconds is 0"),
        (["--live", "--for", "-1"], "--for -1"),
    ],
)
def test_invalid_options_are_reported_in_one_line(
    options: list[str],
    message: str,
    causal_path: str,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "b.wav"):
        sound_files.write(name, noise(1000)[None], 16000)
    before = Path("b.wav").read_bytes()
    assert cli.main(["stream", "--model", causal_path, *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert Path("b.wav").read_bytes() == before


def test_the_loudspeaker_plays_the_offline_output_after_the_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    sound, model = noise(256 * 40), causal_model()
    devices = FakeDevices(sound)
    monkeypatch.setitem(sys.modules, "sounddevice", devices)
    assert run_duplex(Stream(model), 256, (None, None), seconds=0.01) == 1
    played = np.concatenate(devices.played)
    assert not played[:512].any()
    np.testing.assert_allclose(played[512:], offline(model, sound)[:-512], atol=1e-5, rtol=0)


def test_missing_devices_and_packages_are_reported(
    causal_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakeDevices(noise(10), rate=48000))
    assert cli.main(["stream", "--model", causal_path, "--live"]) == 1
    assert "sound device: Invalid sample rate" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert cli.main(["stream", "--model", causal_path, "--live"]) == 1
    assert "pip install sounddevice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("devices", "options", "message"),
    [
        (FakeDevices(noise(10)), ["--devices", "throat", "1"], "device matching 'throat'; `twostage stream --list-dev"),
        (FakeDevices(noise(10), unplugged=True), [], "the sound device stopped"),
    ],
)
def test_an_unknown_or_unplugged_device_ends_a_live_stream_with_one_line(
    devices: FakeDevices,
    options: list[str],
    message: str,
    causal_path: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", devices)
    assert cli.main(["stream", "--model", causal_path, "--live", *options]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("twostage: error: ")
    assert message in last
