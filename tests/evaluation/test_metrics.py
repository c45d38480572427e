"""Tests of the metrics: known values, properties, alignment, and what cannot be scored."""

import sys

import librosa.filters  # without librosa.feature and librosa.stft, which compile themselves for 19 s at first
import numpy as np
import pytest
from scipy.signal import istft, stft
from scipy.signal.windows import hann

from twostage.evaluation import metrics
from twostage.evaluation.metrics import MetricWarning, align, estoi, lsd, mcd, mel_l1, pesq_wb, score, si_sdr, stoi
from twostage.utils.errors import DataError, TwoStageError

RATE = 16000


def speech_like(seconds=2.0, seed=0):
    """Noise with the slow bursts and the falling spectrum of speech, which every metric accepts as speech."""
    rng, frames = np.random.default_rng(seed), round(seconds * RATE)
    amplitudes = rng.normal(size=frames // 1600 + 2)
    bursts = np.abs(np.interp(np.arange(frames) / 1600, np.arange(amplitudes.size), amplitudes))
    return (0.1 * bursts * np.convolve(rng.normal(size=frames), 0.9 ** np.arange(30), "same")).astype(np.float32)


def with_noise(clean, snr, seed=1):
    """Add noise that is uncorrelated with the signal, ``snr`` dB below it."""
    noise = np.random.default_rng(seed).normal(size=clean.size)
    noise -= clean * (noise @ clean) / (clean @ clean)
    noise *= np.sqrt(np.mean(clean**2) / np.mean(noise**2)) * 10 ** (-snr / 20)
    return (clean + noise).astype(np.float32)


@pytest.mark.parametrize("gain", [1.0, 0.3])
@pytest.mark.parametrize(
    ("metric", "value", "tolerance"),
    [(pesq_wb, 4.644, 0.01), (stoi, 1, 1e-6), (estoi, 1, 1e-6), (lsd, 0, 1e-3), (mel_l1, 0, 1e-3), (mcd, 0, 1e-3)],
)
def test_the_clean_signal_scores_best_at_any_gain(metric, value, tolerance, gain):
    clean = speech_like()
    assert metric(clean, gain * clean) == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize("snr", [-10, 0, 20])
def test_si_sdr_is_the_signal_to_noise_ratio(snr):
    clean = speech_like()
    assert si_sdr(clean - clean.mean(), 3 * with_noise(clean - clean.mean(), snr)) == pytest.approx(snr, abs=0.01)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_more_noise_has_a_worse_score(name):
    clean = speech_like()
    little, much = (metrics.METRICS[name](clean, with_noise(clean, snr)) for snr in (20, 0))
    assert (little > much) == metrics.HIGHER_IS_BETTER[name]


def test_lsd_and_mel_l1_of_a_known_filter():
    # a first difference with a gain changes every bin by a known factor
    clean = speech_like()
    other = np.append(0, np.diff(clean)).astype(np.float32)
    gain = np.sqrt(np.mean(clean**2) / np.mean(other**2))
    response = 2 * gain * np.sin(np.pi * np.arange(1, 1025) / 2048)
    assert lsd(clean, other) == pytest.approx(np.sqrt(np.mean((2 * np.log10(response)) ** 2)), abs=0.1)
    centers = librosa.mel_frequencies(82, fmin=0, fmax=8000)[1:-1]
    expected = np.abs(np.log(2 * gain * np.sin(np.pi * centers / RATE))).mean()
    assert mel_l1(clean, other) == pytest.approx(expected, abs=0.1)


def test_mcd_is_the_cepstral_distance_of_librosas_log_mels():
    a = 0.5
    band = np.arange(80) + 0.5
    basis = 2 / 80 * np.cos(np.outer(np.arange(1, 14), band) * np.pi / 80)
    assert (basis @ (a * np.cos(3 * np.pi * band / 80)))[2] == pytest.approx(a)
    clean = speech_like()
    logs = np.log(np.maximum(librosa_mel(clean), 1e-5)), np.log(np.maximum(librosa_mel(with_noise(clean, 5)), 1e-5))
    power = np.exp(2 * logs[0]).sum(0)
    coefficients = (basis @ (logs[0] - logs[1]))[:, power > power.max() * 1e-4]
    expected = 10 / np.log(10) * np.sqrt(2 * (coefficients**2).sum(0)).mean()
    assert mcd(clean, with_noise(clean, 5)) == pytest.approx(expected, rel=1e-3)


def librosa_mel(audio):
    """The mel spectrogram with librosa's basis."""
    audio = np.pad(audio * (0.05 / np.sqrt(np.mean(audio**2))), 384, mode="reflect")
    basis = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=80, fmax=8000)
    return basis @ magnitudes(audio, 1024, 256)


def magnitudes(audio, length, hop):
    frames = np.lib.stride_tricks.sliding_window_view(audio, length)[::hop]
    return np.abs(np.fft.rfft(frames * hann(length, sym=False))).T


@pytest.mark.parametrize("name", metrics.METRICS)
@pytest.mark.parametrize(
    ("reference", "estimate", "reason"),
    [
        (np.zeros(RATE), speech_like(1), "the reference is silent"),
        (speech_like(1), np.zeros(RATE), "the estimate is silent"),
        (speech_like(1), speech_like(1) * np.nan, "the estimate has NaN or infinite samples"),
        (np.zeros(0), np.zeros(0), "there are no samples"),
    ],
)
def test_signals_that_cannot_be_scored_give_nan_with_the_reason(name, reference, estimate, reason):
    with pytest.warns(MetricWarning, match=reason):
        value = metrics.METRICS[name](reference.astype(np.float32), estimate.astype(np.float32))
    assert np.isnan(value)


def test_signals_too_short_for_some_metrics_are_scored_by_the_others():
    clean = speech_like(0.2)
    values, reasons = score(clean, with_noise(clean, 10))
    assert [name for name, value in values.items() if np.isnan(value)] == ["pesq", "stoi", "estoi", "mos", "dnsmos"]
    assert len(reasons) == 5
    assert "stoi: fewer than 30 frames" in reasons[1]
    assert reasons[3] == "mos: too short, less than 0.5 s"
    assert tuple(score(clean[:1], clean[:1])[0]) == metrics.NAMES


def test_pesq_of_a_long_signal_is_the_mean_of_its_parts_with_speech():
    voice, pause = speech_like(2), np.zeros(18 * RATE, np.float32)
    clean = np.concatenate([voice, pause, 0 * voice, pause, 0.5 * voice, pause])  # no speech from 20 to 40 s
    noisy = with_noise(clean, 10)
    parts = [pesq_wb(clean[i : i + 20 * RATE], noisy[i : i + 20 * RATE]) for i in (0, 40 * RATE)]
    assert pesq_wb(clean, noisy) == pytest.approx(np.mean(parts))


def test_unequal_lengths_raise_a_value_error():
    with pytest.raises(ValueError, match=r"\(10,\) and \(9,\)"):
        stoi(np.ones(10, np.float32), np.ones(9, np.float32))


def test_a_missing_package_is_an_error_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(TwoStageError, match=r"pip install 'twostage\[eval\]'"):
        pesq_wb(speech_like(1), speech_like(1))


def test_missing_packages_are_reported_before_scoring(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda package: None if package == "xls_r_sqa" else package)
    metrics.require_packages(["pesq", "dnsmos"])
    with pytest.raises(TwoStageError, match=r"xls_r_sqa is not installed; scores need it: pip install 'twostage\[eval"):
        metrics.require_packages(["pesq", "mos"])


@pytest.mark.parametrize("delay", [-320, -7, 0, 1, 300])
@pytest.mark.parametrize("polarity", [1, -1])
def test_align_corrects_a_delay(delay, polarity):
    long = speech_like()
    reference, estimate = long[400:-400], polarity * long[400 - delay : -400 - delay]
    aligned = align(reference, estimate)
    assert (aligned.delay, aligned.longer) == (delay, 0)
    assert np.array_equal(aligned.reference, polarity * aligned.estimate)
    assert aligned.reference.size == reference.size - abs(delay)


@pytest.mark.parametrize("milliseconds", [-15, -4, 0, 1, 10, 20])
def test_align_corrects_a_delay_without_phase_information(milliseconds):
    clean, offset = speech_like(3), 16 * milliseconds
    rng = np.random.default_rng(0)
    spectrum = stft(clean, nperseg=512, noverlap=384)[2]
    random_phase = np.abs(spectrum) * np.exp(2j * np.pi * rng.random(spectrum.shape))
    other = istft(random_phase, nperseg=512, noverlap=384)[1][: clean.size].astype(np.float32)
    delay = align(clean[320:-320], other[320 - offset : other.size - 320 - offset]).delay
    assert abs(delay - offset) <= 16


@pytest.mark.parametrize("longer", [-300, 300])
def test_align_corrects_a_difference_in_length(longer):
    clean = speech_like()
    reference, estimate = clean[: clean.size - max(longer, 0)], clean[: clean.size + min(longer, 0)]
    aligned = align(reference, estimate)
    assert (aligned.delay, aligned.longer) == (0, longer)
    assert np.array_equal(aligned.reference, aligned.estimate)


def test_align_does_not_shift_unrelated_signals():
    assert align(speech_like(seed=0), speech_like(seed=1)).delay == 0
    assert align(speech_like(), np.zeros(32000, np.float32)).delay == 0


def test_align_refuses_a_difference_in_length_above_20_ms():
    with pytest.raises(DataError, match=r"\+0.021 s, more than 0.02 s"):
        align(np.ones(1000, np.float32), np.ones(1330, np.float32))


def test_stoi_and_estoi_equal_pystois():
    pystoi = pytest.importorskip("pystoi")
    clean = speech_like(3.0)
    noisy = with_noise(clean, 5)
    for metric, extended in ((stoi, False), (estoi, True)):
        assert metric(clean, noisy) == pytest.approx(pystoi.stoi(clean, noisy, RATE, extended), abs=1e-3)
    assert stoi(clean, noisy) > estoi(clean, noisy) + 0.02


def test_si_sdr_ignores_an_offset():
    clean = speech_like()
    noisy = with_noise(clean - clean.mean(), 10)
    assert si_sdr(clean + np.float32(0.2), noisy - np.float32(0.1)) == pytest.approx(si_sdr(clean, noisy), abs=0.01)


def test_lsd_is_the_mean_over_frames_of_the_rms_over_bins():
    clean = speech_like()
    other = with_noise(clean, 5)
    reference_log, estimate_log = (
        2 * np.log10(np.maximum(magnitudes(np.pad(audio / np.sqrt(np.mean(audio**2)) * 0.05, 1024), 2048, 512), 1e-5))
        for audio in (clean, other)
    )
    expected = np.sqrt(np.square(reference_log - estimate_log).mean(0))[2:-2].mean()  # the ends are padded differently
    assert lsd(clean, other) == pytest.approx(expected, rel=0.05)


def test_mcd_ignores_pauses():
    clean = speech_like(4.0)
    clean[RATE : 3 * RATE] *= 1e-4  # 80 dB down
    other = clean.copy()
    other[RATE + 2000 : 3 * RATE - 2000] = 1e-5 * np.random.default_rng(0).normal(size=2 * RATE - 4000)
    assert mcd(clean, other) < 0.01
    other = with_noise(clean, 20)
    assert mcd(clean, other) > 0.5
