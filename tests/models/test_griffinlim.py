"""Tests of Griffin-Lim after a vocoder: magnitudes, inverse STFT, input phase, buzz, windows and settings."""

import numpy as np
import pytest
import torch

from twostage.inference.windowed_inference import WindowedInference
from twostage.models.features import InputSpectra, LogMel, MelConfig
from twostage.models.griffinlim import GriffinLim
from twostage.models.restorer import RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import Vocoder, VocoderConfig
from twostage.utils.errors import ConfigError

CONFIG = MelConfig()
SMALL = {"upsample_initial_channel": 16, "resblock_kernel_sizes": (3,), "resblock_dilation_sizes": ((1,),)}


def voice(seconds: float = 1.0, pitch: float = 137.0) -> torch.Tensor:
    """A voice-like signal (1, 1, T): pulses of varying level, and some noise."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(int(seconds * CONFIG.sample_rate) // 256 * 256) / CONFIG.sample_rate
    pulses = sum(torch.cos(2 * np.pi * k * pitch * time) / k for k in range(1, 50))
    sound = pulses * (1.2 + torch.sin(2 * np.pi * 3 * time)) + 0.1 * torch.randn(len(time), generator=generator)
    return 0.05 * sound[None, None]


def test_the_waveform_of_a_spectrogram_is_its_inverse_stft():
    audio, gl = voice(), GriffinLim(CONFIG, 1)
    spectrum = gl.mel.stft.spectrum(audio)
    reconstructed = gl._waveform(spectrum, gl._coverage(spectrum.shape[-1]))
    torch.testing.assert_close(reconstructed, audio, atol=1e-5, rtol=0)


def test_magnitudes_have_the_given_mels():
    mel, gl = LogMel(CONFIG)(voice()), GriffinLim(CONFIG, 1)
    actual = gl.magnitudes(mel)
    assert float(((gl.mel.basis @ actual).log() - mel).abs().mean()) < 0.05
    assert float(actual.min()) >= 0


def test_magnitudes_take_the_harmonics_from_the_input_below_the_limit():
    """Within a band, the spectrum of a voice that is attenuated by a slope of 20 dB is that of the voice itself."""
    clear, gl = voice(), GriffinLim(CONFIG, 1, input_phase_below=4000.0)
    truth = gl.mel.stft(clear)
    dull = truth * 10 ** (-torch.linspace(0, 1, truth.shape[1])[:, None])
    mel = LogMel(CONFIG)(clear)

    def error(magnitudes: torch.Tensor, bins: slice) -> float:
        return float((magnitudes.log() - truth.log()).abs()[:, bins, 4:-4].mean())

    from_mels, with_input = gl.magnitudes(mel), gl.magnitudes(mel, dull)
    assert error(with_input, slice(6, 64)) < 0.4 * error(from_mels, slice(6, 64))
    assert error(with_input, slice(260, 500)) == pytest.approx(error(from_mels, slice(260, 500)), rel=1e-3)


def test_the_phase_is_taken_from_the_input_only_below_the_limit():
    clear, gl = voice(), GriffinLim(CONFIG, 8, input_phase_below=4000.0)
    mel, noise = LogMel(CONFIG)(clear), 0.05 * torch.randn(clear.shape, generator=torch.Generator().manual_seed(1))

    def agreement(audio: torch.Tensor, bins: slice) -> float:
        """Mean cosine of the phase difference to the clear voice, weighted by power."""
        spectrum, reference = (gl.mel.stft.spectrum(x)[:, bins, 4:-4] for x in (audio, clear))
        return float((spectrum.conj() * reference).real.sum() / (spectrum.abs() * reference.abs()).sum())

    input_spectra = gl.mel.stft.input_spectra(0.1 * clear)
    assert agreement(gl(noise, mel, input_spectra), slice(6, 64)) > 0.95
    assert agreement(gl(noise, mel), slice(6, 64)) < 0.5
    assert agreement(gl(noise, mel, input_spectra), slice(300, 500)) < 0.5


def test_a_silent_input_gives_finite_output():
    gl, mel = GriffinLim(CONFIG, 4, input_phase_below=4000.0), LogMel(CONFIG)(voice())
    start = 0.05 * torch.randn(1, 1, 15872, generator=torch.Generator().manual_seed(3))
    assert gl(start, mel, InputSpectra(*torch.zeros(2, 1, 513, 62, dtype=torch.complex64))).isfinite().all()


def test_more_iterations_reduce_the_error_of_the_mels():
    mel, noise = LogMel(CONFIG)(voice()), 0.05 * torch.randn(1, 1, 15872, generator=torch.Generator().manual_seed(1))
    errors = [float((LogMel(CONFIG)(GriffinLim(CONFIG, n)(noise, mel)) - mel).abs().mean()) for n in (0, 1, 4, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.15 * errors[0]


def buzz_db(audio: torch.Tensor, above: float = 125.0) -> float:
    """Power at multiples of the frame rate over the power half-way between them, in dB, above a frequency in Hz."""
    power = torch.fft.rfft(audio[0, 0, 8192:24576] * torch.hann_window(16384)).abs().square()
    first = round(above / 62.5) * 64
    return float(10 * torch.log10(power[first:-64:64].mean() / power[first + 32 : -64 : 64].mean()))


def repeated_frame(hiss: torch.Tensor) -> torch.Tensor:
    """The same waveform in every frame, the worst buzz that a vocoder can have."""
    return hiss[..., :256].repeat(1, 1, hiss.shape[-1] // 256)


@pytest.mark.parametrize("iterations", [1, 3])
def test_below_a_limit_it_replaces_the_audio_and_above_the_audio_stays(iterations: int):
    clear, noise = voice(), 0.05 * torch.randn(voice().shape, generator=torch.Generator().manual_seed(1))
    mel = LogMel(CONFIG)(clear)
    input_spectra = LogMel(CONFIG).stft.input_spectra(clear)
    whole = GriffinLim(CONFIG, iterations, 4000.0)(noise, mel, input_spectra)
    low = GriffinLim(CONFIG, iterations, 4000.0, below=2000.0)(noise, mel, input_spectra)

    def difference(first: torch.Tensor, second: torch.Tensor, hertz: slice) -> float:
        """Energy of the difference in the band, relative to that of the noise."""
        error, all_of_it = torch.fft.rfft(first - second)[..., hertz], torch.fft.rfft(noise)[..., hertz]
        return float(error.abs().square().sum() / all_of_it.abs().square().sum())

    assert difference(low, whole, slice(0, 1900)) < 1e-3 < 0.1 < difference(noise, whole, slice(0, 1900))
    assert difference(low, noise, slice(3100, 8000)) < 1e-3 < 0.1 < difference(noise, whole, slice(3100, 8000))


def test_griffin_lim_removes_a_buzz_at_the_frame_rate():
    hiss = 0.05 * torch.randn(1, 1, 32768, generator=torch.Generator().manual_seed(2))
    buzz = repeated_frame(hiss)
    assert buzz_db(buzz) > 40
    assert buzz_db(GriffinLim(CONFIG, 16)(buzz, LogMel(CONFIG)(hiss))) < 10


def test_the_compressed_input_removes_a_buzz_in_bands_that_the_input_lacks():
    hiss = 0.05 * torch.randn(1, 1, 32768, generator=torch.Generator().manual_seed(2))
    spectrum = torch.fft.rfft(hiss)
    spectrum[..., 8192:] = 0  # from 4 kHz on
    dull, mel = torch.fft.irfft(spectrum), LogMel(CONFIG)(hiss)
    gl = GriffinLim(CONFIG, 1, input_phase_below=32000.0)
    input_spectra = gl.mel.stft.input_spectra(dull)
    uncompressed = input_spectra._replace(compressed=torch.zeros_like(input_spectra.compressed))
    assert buzz_db(gl(repeated_frame(hiss), mel, uncompressed), 4500.0) > 20
    assert buzz_db(gl(repeated_frame(hiss), mel, input_spectra), 4500.0) < 8


@pytest.mark.parametrize(("iterations", "context", "below"), [(4, 13, 0.0), (16, 28, 0.0), (1, 4, 2000.0)])
@pytest.mark.parametrize("with_input", [False, True])
def test_the_context_suffices_and_rounding_errors_do_not_grow(
    with_input: bool, iterations: int, context: int, below: float
):
    audio, gl = voice(3.0), GriffinLim(CONFIG, iterations, input_phase_below=4000.0, below=below)
    assert gl.context == context
    mel, input_spectra = LogMel(CONFIG)(audio), gl.mel.stft.input_spectra(audio) if with_input else None
    start = 0.05 * torch.randn(audio.shape, generator=torch.Generator().manual_seed(3))
    whole = gl(start, mel, input_spectra)
    first, last = 60 - gl.context, 100 + gl.context
    samples = slice(first * 256, last * 256)
    part = gl(
        start[..., samples],
        mel[..., first:last],
        None if input_spectra is None else input_spectra.each(lambda x: x[..., first:last]),
    )
    inside = slice(gl.context * 256, (gl.context + 40) * 256)
    torch.testing.assert_close(part[..., inside], whole[..., 60 * 256 : 100 * 256], atol=1e-6, rtol=0)
    perturbed = gl(start * (1 + 1e-6), mel, input_spectra)
    assert float((perturbed - whole).abs().max()) < 1e-4


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_short_audio_keeps_its_length(frames):
    audio = GriffinLim(CONFIG, 2)(torch.zeros(2, 1, frames * 256), torch.full((2, 80, frames), -11.5))
    assert audio.shape == (2, 1, frames * 256)
    assert audio.isfinite().all()


def test_a_vocoder_applies_griffin_lim_only_at_inference():
    torch.manual_seed(0)
    plain, finished = Vocoder(VocoderConfig(**SMALL)), Vocoder(VocoderConfig(**SMALL, griffin_lim=2))
    finished.load_state_dict(plain.state_dict())
    mel = LogMel(CONFIG)(voice())
    with torch.no_grad():
        assert torch.equal(plain.train()(mel), finished.train()(mel))
        raw = plain.eval()(mel)
        assert torch.equal(finished.eval()(mel), GriffinLim(CONFIG, 2)(raw, mel))
    assert finished.context == plain.context + 2 * 3 + 1


def test_invalid_settings_are_errors_that_name_them():
    with pytest.raises(ConfigError, match=r"vocoder.griffin_lim is -1"):
        VocoderConfig(griffin_lim=-1)
    with pytest.raises(ConfigError, match=r"vocoder.input_phase_below is 4000"):
        VocoderConfig(input_phase_below=4000.0)
    with pytest.raises(ConfigError, match=r"vocoder.griffin_lim_below is 2000"):
        VocoderConfig(griffin_lim_below=2000.0)
    with pytest.raises(ConfigError, match=r"griffin_lim and resynthesis need mel.win_length equal to mel.n_fft"):
        GriffinLim(MelConfig(win_length=800), 1)


def test_the_model_passes_the_input_to_griffin_lim_and_windows_equal_the_whole():
    torch.manual_seed(0)
    restorer = RestorerConfig(channels=(4, 8), time_strides=(2,), dilations=(1,))
    model = TwoStage(TwoStageConfig(restorer, VocoderConfig(**SMALL, griffin_lim=2, input_phase_below=4000.0))).eval()
    audio = voice(4.0)
    with torch.no_grad():
        whole = model(audio)
        input_spectra = model.mel.stft.input_spectra(audio)
        assert torch.equal(whole, model.vocoder(model.restorer(model.mel(audio)), input_spectra))
        assert float((whole - model.vocoder(model.restorer(model.mel(audio)))).abs().max()) > 1e-3
        first, keep = 60 * 256, 80 * 256
        context = -(-model.context // model.stride) * model.stride
        part = WindowedInference(model)(audio[..., first - context : first + keep + context], context, keep)
    torch.testing.assert_close(part, whole[..., first : first + keep], atol=1e-5, rtol=0)
