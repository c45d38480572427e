"""Tests of the warnings about unsuitable input, and of full-band channels, which can be copied or refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.signal import butter, sosfiltfilt
from torch import Tensor

from twostage import cli
from twostage.app.api import restore_request
from twostage.app.service import Service
from twostage.audio import sound_files
from twostage.audio.bandwidth import FULL_BAND_DB, BandMeter, ClipMeter
from twostage.cli import main
from twostage.commands.options import restoration_options
from twostage.inference.restoration import restore, restore_file
from twostage.inference.restore_options import Options
from twostage.models.checkpoint import load
from twostage.models.enhancer import EnhancerModule
from twostage.utils.errors import AudioError, ConfigError

RATE = 16000


class Reversed(EnhancerModule):
    """An enhancer that reverses time, so that its output differs from its input everywhere."""

    sample_rate, hop_length, stride, context = RATE, 256, 512, 1024

    def forward(self, audio: Tensor) -> Tensor:
        return audio.flip(-1)


def speech(seconds=4.0, rate=RATE, seed=0):
    """Bursts of noise with the falling spectrum of speech, separated by pauses."""
    rng, frames = np.random.default_rng(seed), round(seconds * rate)
    bursts = np.maximum(0, np.sin(2 * np.pi * 2 * np.arange(frames) / rate)) ** 2
    voice = np.convolve(rng.normal(size=frames), 0.8 ** np.arange(30), "same")
    return (0.05 * bursts * voice + 1e-5 * rng.normal(size=frames)).astype(np.float32)


def muffled(audio, cutoff=900.0, rate=RATE):
    return sosfiltfilt(butter(6, cutoff, fs=rate, output="sos"), audio).astype(np.float32)


def measured_band(audio, rate=RATE):
    meter = BandMeter(1, rate)
    for block in np.array_split(audio[None], 7, axis=1):
        meter.add(block)
    return meter.bands()[0]


def test_the_level_of_the_high_band_follows_its_gain():
    spectrum = np.fft.rfft(speech())
    attenuated = np.fft.irfft(np.where(np.fft.rfftfreq(4 * RATE, 1 / RATE) > 1500, 0.1, 1) * spectrum).astype(
        np.float32
    )
    band, attenuated_band = measured_band(speech()), measured_band(attenuated)
    assert band.high_db - attenuated_band.high_db == pytest.approx(20, abs=0.6)
    assert measured_band(0.01 * speech()).high_db == pytest.approx(band.high_db, abs=0.6)
    assert band.full_band
    assert not attenuated_band.full_band or attenuated_band.high_db > FULL_BAND_DB


def test_the_meter_measures_the_same_in_blocks_of_any_length():
    stereo, whole, in_blocks = np.stack([speech(), muffled(speech())]), BandMeter(2, RATE), BandMeter(2, RATE)
    whole.add(stereo)
    for block in np.split(stereo, [1, 7, 5000, 5001, 40000], axis=1):
        in_blocks.add(block)
    assert whole.bands() == in_blocks.bands()
    assert [band.full_band for band in whole.bands()] == [True, False]


@pytest.mark.parametrize("rate", [16000, 22050, 48000])
def test_the_measured_band_does_not_depend_on_the_sample_rate(rate):
    audio = sound_files.resample(speech(), RATE, rate)
    assert measured_band(audio, rate).high_db == pytest.approx(measured_band(speech()).high_db, abs=1.5)


def test_a_click_and_long_pauses_do_not_change_the_verdict():
    sparse = np.concatenate([speech(), 1e-5 * np.random.default_rng(0).normal(size=40 * RATE)]).astype(np.float32)
    assert measured_band(sparse).full_band
    clicked = muffled(speech(10))
    clicked[40000:40030] += 0.9
    assert not measured_band(clicked).full_band


def test_noise_in_the_high_band_does_not_make_a_recording_full_band():
    noisy = muffled(speech()) + 0.005 * np.random.default_rng(1).normal(size=4 * RATE).astype(np.float32)
    assert measured_band(noisy).high_db > FULL_BAND_DB
    assert not measured_band(noisy).full_band


def test_short_silent_and_narrowband_audio_has_no_high_band_level():
    assert measured_band(speech(0.5)).high_db is None
    assert measured_band(np.zeros(4 * RATE, np.float32)).high_db is None
    assert measured_band(speech(4, 8000), 8000).high_db is None  # the audio ends at 4 kHz
    assert not measured_band(speech(0.5)).full_band


@pytest.mark.parametrize(("limit", "clipped"), [(1.0, False), (0.3, True)])
def test_consecutive_samples_at_the_peak_count_as_clipping(limit, clipped):
    audio, meter = speech(), ClipMeter(1)
    limited = np.clip(audio, -limit * np.abs(audio).max(), limit * np.abs(audio).max())
    for block in np.array_split(limited[None], 5, axis=1):
        meter.add(block)
    assert (meter.shares()[0] > 2e-4) == clipped
    tone_meter = ClipMeter(1)
    tone_meter.add(0.5 * np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE)[None].astype(np.float32))
    assert tone_meter.shares()[0] < 2e-4


def test_warnings_name_the_channel_and_what_was_measured():
    audio = np.stack([muffled(speech()), speech(), np.zeros(4 * RATE, np.float32)])
    with pytest.warns(UserWarning, match=r"the audio is channel 2 full-band already \(\d+ dB .*restored anyway"):
        restore(Reversed(), audio, RATE)
    noise = 0.1 * np.random.default_rng(0).normal(size=4 * RATE).astype(np.float32)
    with pytest.warns(UserWarning, match=r"the audio is without pauses"):
        restore(Reversed(), noise, RATE)
    loud = np.clip(20 * muffled(speech()), -0.3, 0.3)
    with pytest.warns(UserWarning, match=r"the audio is clipped"):
        restore(Reversed(), loud, RATE)


def test_a_full_band_channel_is_copied_and_the_other_restored():
    highpassed = sosfiltfilt(butter(4, 100, "highpass", fs=RATE, output="sos"), speech()).astype(np.float32)
    audio = np.stack([muffled(highpassed), highpassed])  # without what the high-pass at the input would remove
    with pytest.warns(UserWarning, match="channel 2 full-band already .*; copied"):
        out = restore(Reversed(), audio, RATE, if_full_band="copy")
    assert np.abs(out[1] - audio[1]).max() < 1e-3 * np.abs(audio[1]).max()
    assert np.abs(out[0] - audio[0]).max() > 0.01


@pytest.mark.parametrize("level", ["input", "model"])
def test_a_full_band_file_is_copied_at_its_own_sample_rate(tmp_path: Path, level):
    audio = sound_files.resample(speech(), RATE, 44100) + 1e-3 * np.sin(np.arange(4 * 44100) * 2.0).astype(np.float32)
    sound_files.write(tmp_path / "a.wav", audio, 44100)
    options = Options(level=level, sample_rate="input", if_full_band="copy")
    report = restore_file(Reversed(), tmp_path / "a.wav", tmp_path / "b.wav", options)
    copy = sound_files.read(tmp_path / "b.wav")[0][0]
    inputs = sound_files.read(tmp_path / "a.wav")[0][0]
    gain = float(copy @ inputs / (inputs @ inputs))
    assert np.abs(copy - gain * inputs).max() < 1e-4  # including the tone at 14 kHz
    assert (abs(gain - 1) < 1e-4) == (level == "input")
    assert report.copied == [1]
    assert report.high_band_db[0] > FULL_BAND_DB


def test_full_band_input_can_be_refused(tmp_path: Path, tiny_path: Path, capsys):
    sound_files.write(tmp_path / "full.wav", speech(), RATE)
    sound_files.write(tmp_path / "bone.wav", muffled(speech()), RATE)
    with pytest.raises(AudioError, match=r"audio: full-band already \(channel 1\)"):
        restore(Reversed(), speech(), RATE, if_full_band="error")
    arguments = ["restore", str(tmp_path), "-o", str(tmp_path / "out"), "--model", str(tiny_path)]
    report_option = ["--json", str(tmp_path / "report.json")]
    assert main([*arguments, *report_option, "--if-full-band", "error"]) == 1
    assert "full.wav: full-band already (channel 1)" in capsys.readouterr().err
    files = {Path(file["source"]).name: file for file in json.loads((tmp_path / "report.json").read_text())["files"]}
    assert (files["bone.wav"]["status"], files["full.wav"]["status"]) == ("restored", "failed")
    assert files["bone.wav"]["high_band_db"][0] < FULL_BAND_DB
    assert main([*arguments, *report_option, "--overwrite"]) == 0
    assert "full.wav: full-band already" in capsys.readouterr().err


def test_server_and_corpus_accept_if_full_band_as_the_command_does(tmp_path: Path, tiny_path: Path):
    """A request to the server and the workers of a corpus use the same options as the command, which copies."""
    sound_files.write(tmp_path / "full.wav", speech(), RATE)
    options = Options(if_full_band="copy")
    report = restore_file(load(tiny_path), tmp_path / "full.wav", tmp_path / "copy.wav", options)
    assert report.copied == [1]
    request = restore_request(
        {"if_full_band": "copy"}, SimpleNamespace(models=SimpleNamespace(labels=["m"]), devices=["cpu"])
    )
    service = Service(None, None, ["cpu"], None, None)  # type: ignore[arg-type]
    assert service.options(request) == options
    arguments = ["restore-corpus", str(tmp_path / "full.csv"), "-o", str(tmp_path / "out"), "--if-full-band", "copy"]
    assert restoration_options(cli.parse(arguments)) == options


def test_an_invalid_choice_is_named():
    with pytest.raises(ConfigError, match="if_full_band is 'leave', must be"):
        restore(Reversed(), speech(), RATE, if_full_band="leave")


def test_only_the_bone_channel_of_bone_and_air_is_checked():
    class ReversedBone(Reversed):
        inputs = 2

        def forward(self, audio: Tensor) -> Tensor:
            return torch.flip(audio[:, :1], (-1,))

    audio = np.stack([muffled(speech()), speech()])
    assert restore(ReversedBone(), audio, RATE, if_full_band="error").shape == (1, 4 * RATE)
    with pytest.raises(AudioError, match="full-band"):
        restore(ReversedBone(), audio[::-1].copy(), RATE, if_full_band="error")
