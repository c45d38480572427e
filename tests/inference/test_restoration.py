"""Tests of restoring arrays and files: windows, levels, the low band, errors, memory, progress, batches."""

import io
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import twostage
from twostage.audio import levels, sound_files
from twostage.audio.highpass import highpass
from twostage.audio.sound_files import match_length
from twostage.inference import rendering, restoration, spool
from twostage.inference.chunks import enhance
from twostage.inference.input_levels import AudioSource, measure_levels
from twostage.inference.restoration import restore, restore_file
from twostage.inference.restore_options import Options
from twostage.inference.windowed_inference import WindowedInference
from twostage.inference.windows import keep_low_band, windows
from twostage.models.enhancer import Enhancer, EnhancerModule
from twostage.models.two_stage import TwoStage
from twostage.utils.errors import AudioError, Cancelled, ConfigError

Speech = Callable[..., np.ndarray]


class Identity(EnhancerModule):
    """An enhancer that returns its input."""

    sample_rate, hop_length, stride, context = 16000, 256, 512, 1024

    def forward(self, audio: Tensor) -> Tensor:
        return audio


class Scale(Identity):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, audio: Tensor) -> Tensor:
        return self.gain * audio


def restored_level(model: Enhancer, inputs: np.ndarray, **options: str) -> float:
    return levels.active_level(restore(model, inputs, 16000, **options), 16000)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [512, 1024, 5120])
@pytest.mark.parametrize("frames", [1, 511, 512, 1537, 12001])
def test_windows_cover_a_stream_once_with_context(keep: int, frames: int) -> None:
    inputs, context = np.arange(frames, dtype=np.float32)[None], 1024
    kept = []
    for window in windows(np.array_split(inputs, 5, axis=1), keep, context):
        first = window.audio[0, window.skip]
        kept.append(window.audio[:, window.skip : window.skip + window.keep])
        after = window.audio.shape[1] - window.skip - window.keep
        assert window.audio[0, 0] == max(0, first - context)
        assert after == context or window.audio[0, -1] == frames - 1
        assert window.skip % 512 == 0
    assert np.array_equal(np.concatenate(kept, axis=1), inputs)


@pytest.mark.parametrize("frames", [1, 255, 256, 12345, 40000, 65536])
@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0])
def test_restoring_in_windows_equals_restoring_the_whole(
    tiny: TwoStage, speech: Speech, frames: int, seconds: float
) -> None:
    stereo = np.stack([speech(frames), speech(frames, seed=1)])
    whole = restore(tiny, stereo, 16000, seconds=float("inf"), level="model")
    windowed = restore(tiny, stereo, 16000, seconds=seconds, level="model")
    assert whole.shape == stereo.shape
    assert np.abs(whole).max() > 1e-3
    assert np.abs(whole - windowed).max() < 1e-5


def test_windows_in_a_batch_equal_single_windows(tiny: TwoStage, speech: Speech) -> None:
    stereo = np.stack([speech(40000), speech(40000, seed=1)])
    sizes: dict[int, list[int]] = {1: [], 3: []}

    def restored_in_batches(batch: int) -> np.ndarray:
        hook = tiny.restorer.conv_pre.register_forward_pre_hook(lambda _, inputs: sizes[batch].append(len(inputs[0])))
        output = np.concatenate([out for _, out in enhance(tiny, [stereo], 0.2, [0, 1], batch)], axis=1)
        hook.remove()
        return output

    single, batched = restored_in_batches(1), restored_in_batches(3)
    assert set(sizes[1]) == {1}
    assert max(sizes[3]) == 3
    assert sum(sizes[1]) == sum(sizes[3])  # the same number of windows
    assert single.shape == stereo.shape
    assert np.abs(single).max() > 1e-3
    assert np.abs(single - batched).max() < 1e-5


def test_the_context_is_needed(tiny: TwoStage, speech: Speech) -> None:
    """The tests above can fail: with too little context, windows of the tiny model differ from the whole."""
    inputs = speech(40000)

    class TooLittleContext(EnhancerModule):
        sample_rate, hop_length, stride, context = 16000, 256, tiny.stride, tiny.stride

        def forward(self, audio: Tensor) -> Tensor:
            return tiny(audio)

    whole = restore(tiny, inputs, 16000, seconds=float("inf"), level="model")
    assert np.abs(restore(TooLittleContext(), inputs, 16000, seconds=0.5, level="model") - whole).max() > 1e-4


def test_restoring_applies_the_model_to_the_leveled_input(tiny: TwoStage, speech: Speech) -> None:
    inputs = speech(256 * 40)
    highpassed = highpass(inputs, 16000)
    level = levels.active_level(highpassed, 16000)
    leveled = torch.from_numpy(highpassed * np.float32(10 ** ((levels.LEVEL - level) / 20)))
    expected = tiny(leveled[None, None])[0, 0].numpy()
    assert np.abs(restore(tiny, inputs, 16000, level="model") - expected).max() < 1e-5


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize("frames", [1, 2, 1000, 30001])
def test_the_output_has_the_exact_length(
    tiny: TwoStage, speech: Speech, tmp_path: Path, rate: int, frames: int
) -> None:
    inputs = speech(frames, rate)
    expected_frames = max(1, round(frames * 16000 / rate))
    assert restore(tiny, inputs, rate).shape == (expected_frames,)
    sound_files.write(tmp_path / "a.wav", inputs, rate)
    restore_file(tiny, tmp_path / "a.wav", tmp_path / "model.wav")
    restore_file(tiny, tmp_path / "a.wav", tmp_path / "input.wav", Options(sample_rate="input"))
    assert sound_files.info(tmp_path / "model.wav") == sound_files.Info(16000, 1, expected_frames, "WAV", "PCM_16")
    assert sound_files.info(tmp_path / "input.wav") == sound_files.Info(rate, 1, frames, "WAV", "PCM_16")


def test_restoring_a_file_equals_restoring_its_array(tiny: TwoStage, speech: Speech, tmp_path: Path) -> None:
    inputs = np.stack([speech(50000, 44100), 0.3 * speech(50000, 44100, seed=1)])
    sound_files.write(tmp_path / "a.wav", inputs, 44100, subtype="FLOAT")
    restore_file(tiny, tmp_path / "a.wav", tmp_path / "b.wav", Options(seconds=0.3))
    assert np.abs(sound_files.read(tmp_path / "b.wav")[0] - restore(tiny, inputs, 44100)).max() < 1e-5


def test_channels_are_restored_independently(tiny: TwoStage, speech: Speech) -> None:
    left, right = speech(8000), 0.5 * speech(8000, seed=1)
    both = restore(tiny, np.stack([left, right]), 16000)
    assert np.abs(both[0] - restore(tiny, left, 16000)).max() < 1e-6
    assert np.abs(both[1] - restore(tiny, right, 16000)).max() < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32"])
def test_the_output_has_the_type_and_dtype_of_the_input(tiny: TwoStage, speech: Speech, dtype: str) -> None:
    scale = 1 if dtype.startswith("float") else np.iinfo(dtype).max
    inputs = speech(4000) * scale
    inputs = (np.round(inputs) if scale > 1 else inputs).astype(dtype)
    out = restore(tiny, inputs, 16000)
    assert isinstance(out, np.ndarray)
    assert out.dtype == dtype
    tensor = restore(tiny, torch.from_numpy(inputs)[None], 16000)
    assert isinstance(tensor, Tensor)
    assert tensor.dtype == torch.from_numpy(inputs).dtype
    assert np.array_equal(tensor[0].numpy(), out)
    assert np.abs(out / scale - restore(tiny, speech(4000), 16000)).max() < 5e-4


@pytest.mark.parametrize("gain", [0.001, 0.1, 3.0])
def test_the_output_has_the_level_of_the_input_or_of_the_model(speech: Speech, gain: float) -> None:
    inputs = 0.2 * speech(32000)
    assert restored_level(Scale(gain), inputs) == pytest.approx(levels.active_level(inputs, 16000), abs=0.01)
    expected = levels.LEVEL + 20 * np.log10(gain)
    assert restored_level(Scale(gain), inputs, level="model") == pytest.approx(expected, abs=0.01)


def test_the_limiter_prevents_clipping_and_keeps_the_balance(speech: Speech, tmp_path: Path) -> None:
    class Peaky(Identity):
        def forward(self, audio: Tensor) -> Tensor:
            return audio**3 * 100

    inputs = np.stack([speech(32000), 0.5 * speech(32000)])
    inputs *= 0.95 / np.abs(inputs).max()
    out = restore(Peaky(), inputs, 16000)
    assert np.abs(out).max() == pytest.approx(restoration.PEAK, abs=1e-4)
    assert levels.active_level(out[0], 16000) - levels.active_level(out[1], 16000) == pytest.approx(6.02, abs=0.05)
    sound_files.write(tmp_path / "a.wav", inputs, 16000)
    report = restore_file(Peaky(), tmp_path / "a.wav", tmp_path / "b.ogg", Options(sample_rate="input"))
    assert np.abs(sound_files.read(tmp_path / "b.ogg")[0]).max() < 1
    assert report.limited_db > 1


@pytest.mark.parametrize("cutoff", [100.0, 700.0, 3000.0])
@pytest.mark.parametrize("frames", [1, 100, 600, 30000])
def test_both_bands_of_the_crossover_sum_to_the_input(speech: Speech, cutoff: float, frames: int) -> None:
    inputs = speech(frames)
    out = restore(Identity(), inputs, 16000, keep_low_band=cutoff, seconds=0.3)
    assert np.abs(out - highpass(inputs, 16000)).max() < 1e-6


def test_the_low_band_is_taken_from_the_input() -> None:
    time = np.arange(16000) / 16000
    low, high = (np.sin(2 * np.pi * f * time).astype(np.float32)[None] for f in (300, 2000))

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        cuts = [1, 5000, 5001, 9000]
        yield from zip(np.split(low + high, cuts, 1), np.split(0 * low, cuts, 1), strict=True)

    out = np.concatenate(list(keep_low_band(pairs(), 700.0, 16000)), axis=1)
    assert out.shape == low.shape
    assert np.abs(out - low)[0, 300:-300].max() < 0.01


def test_the_crossover_in_blocks_equals_the_whole(speech: Speech) -> None:
    inputs, other = speech(20000)[None], speech(20000, seed=3)[None]
    whole = next(iter([np.concatenate(list(keep_low_band([(inputs, other)], 500.0, 16000)), axis=1)]))
    cuts = list(range(100, 20000, 777))
    pairs = zip(np.split(inputs, cuts, 1), np.split(other, cuts, 1), strict=True)
    assert np.abs(np.concatenate(list(keep_low_band(pairs, 500.0, 16000)), axis=1) - whole).max() < 1e-6


def test_silence_is_restored_as_silence(tiny: TwoStage, speech: Speech, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="silent"):
        assert not restore(tiny, np.zeros(5000, np.float32), 16000).any()
    sound_files.write(tmp_path / "a.wav", np.stack([speech(5000), np.zeros(5000)]), 16000)
    report = restore_file(tiny, tmp_path / "a.wav", tmp_path / "b.wav")
    assert report.warnings == ["channel 2 silent; restored as silence"]
    out, _ = sound_files.read(tmp_path / "b.wav")
    assert out[0].any()
    assert not out[1].any()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros(0), "no samples"),
        (np.zeros((1, 1, 2, 3)), "shape"),
        (np.zeros((5000, 2)), "shape"),
        (np.array([0.1, np.nan, 0.1]), "NaN or infinite"),
        (np.array([0.1, 0.1, -np.inf]), "NaN or infinite"),
    ],
)
def test_arrays_that_cannot_be_restored_are_refused(inputs: np.ndarray, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        restore(Identity(), inputs, 16000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"level": "loud"}, "level is 'loud'"),
        ({"keep_low_band": 8000.0}, "keep_low_band is 8000.0"),
        ({"keep_low_band": -1.0}, "keep_low_band is -1.0"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        restore(Identity(), np.ones(100), 16000, **options)  # type: ignore[arg-type]


def test_non_finite_output_is_an_error_and_not_written(speech: Speech, tmp_path: Path) -> None:
    sound_files.write(tmp_path / "a.wav", speech(2000), 16000)
    with pytest.raises(AudioError, match="the model's output is not finite"):
        restore_file(Scale(float("nan")), tmp_path / "a.wav", tmp_path / "b.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_an_interruption_leaves_no_file(speech: Speech, tmp_path: Path) -> None:
    sound_files.write(tmp_path / "a.wav", speech(20000), 16000)

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_file(Identity(), tmp_path / "a.wav", tmp_path / "b.wav", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_a_full_disk_is_reported_before_restoring(
    speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound_files.write(tmp_path / "a.wav", speech(20000), 16000)
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda path: SimpleNamespace(free=79999))
    with pytest.raises(AudioError, match=r"b\.wav: cannot be written \(No space left on device: 0\.1 MB are needed"):
        restore_file(Scale(float("nan")), tmp_path / "a.wav", tmp_path / "b.wav")
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda path: SimpleNamespace(free=80000))
    restore_file(Identity(), tmp_path / "a.wav", tmp_path / "b.wav")


def test_windowed_inference_of_one_window_equals_the_model(tiny: TwoStage, speech: Speech) -> None:
    inputs = torch.from_numpy(speech(40000))[None, None]
    skip, keep = 16 * 512, 20 * 512 + 77
    expected = tiny(inputs)[..., skip : skip + keep]
    assert torch.allclose(WindowedInference(tiny)(inputs, skip, keep), expected, atol=1e-6)
    assert torch.allclose(WindowedInference(tiny)(inputs, 0, 39900), tiny(inputs)[..., :39900], atol=1e-6)


def test_consecutive_windows_generate_only_new_frames(
    tiny: TwoStage, speech: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, vocoder = speech(120000)[None], tiny.vocoder
    frames_generated: list[int] = []

    def generate(mel: Tensor, *inputs: object) -> Tensor:
        frames_generated.append(mel.shape[-1])
        return type(vocoder).generate(vocoder, mel, *inputs)

    monkeypatch.setattr(vocoder, "generate", generate)
    output = np.concatenate([block for _, block in enhance(tiny, [inputs], 0.8, [0])], axis=1)
    whole = tiny(torch.from_numpy(match_length(inputs, 469 * 256))[None])[0, :, :120000]
    assert np.allclose(output, whole.detach().numpy(), atol=1e-6)
    *windows, whole_frames = frames_generated
    assert len(windows) > 5
    # beyond the frames that are kept, each window generates the context of its first and of its last new frames
    assert sum(windows) == whole_frames + (len(windows) - 1) * 2 * vocoder.generator_context


def test_consecutive_windows_must_start_at_a_hop(tiny: TwoStage, speech: Speech) -> None:
    inputs, in_windows = torch.from_numpy(speech(40000))[None, None], WindowedInference(tiny)
    in_windows(inputs, 0, 10 * 512 + 100)
    with pytest.raises(ValueError, match="a window begins at 5220, not at a multiple of 256"):
        in_windows(inputs, 10 * 512 + 100, 512)


def test_a_file_cannot_be_replaced_by_its_own_restoration(speech: Speech, tmp_path: Path) -> None:
    sound_files.write(tmp_path / "a.wav", speech(2000), 16000)
    with pytest.raises(AudioError, match="its own restoration"):
        restore_file(Identity(), tmp_path / "a.wav", tmp_path / "a.wav", Options(overwrite=True))


def test_blocks_of_the_output_add_up_to_the_length(speech: Speech) -> None:
    source = AudioSource("x", 16000, 1, lambda: iter([speech(50000)[None]]))
    done = sum(pair[0].shape[1] for pair in enhance(Identity(), source.blocks(), 0.2, [0]))
    assert done == 50000


class Discarding(io.RawIOBase):
    def write(self, data: object) -> int:
        return memoryview(data).nbytes  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("options", [Options(), Options(keep_low_band=500.0, sample_rate="input")])
def test_memory_does_not_grow_with_the_length_of_a_file(options: Options) -> None:
    block = np.random.default_rng(0).standard_normal((1, 65536), np.float32) * 0.1

    def peak(minutes: int) -> int:
        source = AudioSource("x", 8000, 1, lambda: (block for _ in range(minutes * 60 * 8000 // 65536)))
        tracemalloc.start()
        measured = measure_levels(source, 16000)
        spool_file = spool.SpoolFile(Discarding(), 1)  # type: ignore[arg-type]
        rendering.render(Identity(), source, measured, 16000, options, spool_file, 0.99, lambda _: None)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak_bytes

    assert peak(8) < 1.1 * peak(1)


def test_public_names_are_importable() -> None:
    assert twostage.restore is restore
    assert twostage.TwoStage is TwoStage
    assert callable(twostage.load)
    assert set(twostage.__all__) <= set(dir(twostage))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        twostage.nothing  # noqa: B018


@pytest.mark.slow
def test_many_channels_are_restored_in_shorter_blocks_and_windows(
    tiny: TwoStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks and windows of 320 channels are a twentieth as long, and the output is the same."""
    channels, inputs = 20 * sound_files.USUAL, np.random.default_rng(0).normal(0, 0.1, (1, 30000)).astype(np.float32)
    silent = np.zeros((channels - 1, inputs.shape[1]), np.float32)
    sound_files.write(tmp_path / "many.wav", np.concatenate([inputs, silent]), 16000, subtype="FLOAT")
    sound_files.write(tmp_path / "one.wav", inputs, 16000, subtype="FLOAT")
    windows, blocks, original = list[float](), list[int](), rendering.enhance

    def recording_enhance(model: object, inputs: Iterator[np.ndarray], seconds: float, *rest: object) -> object:
        windows.append(seconds)
        return original(model, (blocks.append(block.size) or block for block in inputs), seconds, *rest)  # type: ignore

    monkeypatch.setattr(rendering, "enhance", recording_enhance)
    for name in ("many", "one"):
        restoration.restore_file(tiny, tmp_path / f"{name}.wav", tmp_path / f"{name}_out.wav")
    assert windows == [0.5, 10.0]
    assert max(blocks) <= sound_files.BLOCK * sound_files.USUAL < channels * inputs.shape[1]
    many, one = (sound_files.read(tmp_path / f"{name}_out.wav")[0] for name in ("many", "one"))
    assert np.allclose(many[0], one[0], atol=1e-5)


def test_progress_covers_all_seconds_and_cancel_stops_restoring(tiny: TwoStage, speech: Speech, tmp_path: Path) -> None:
    sound, seconds_done = speech(16000 * 5), list[float]()
    restored = restore(tiny, sound, 16000, seconds=1.0, progress=seconds_done.append)
    assert len(seconds_done) >= 4
    assert sum(seconds_done) == pytest.approx(5)
    np.testing.assert_array_equal(restored, restore(tiny, sound, 16000, seconds=1.0))
    cancel_answers = iter([False] * 3 + [True])  # two blocks are measured, one is restored
    seconds_done.clear()
    with pytest.raises(Cancelled, match="audio: cancelled"):
        restore(tiny, sound, 16000, seconds=1.0, progress=seconds_done.append, cancel=lambda: next(cancel_answers))
    assert 0 < sum(seconds_done) < 5
    sound_files.write(tmp_path / "a.wav", sound, 16000)
    with pytest.raises(Cancelled, match=r"a\.wav: cancelled"):
        restore_file(tiny, tmp_path / "a.wav", tmp_path / "b.wav", cancel=lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_a_batch_is_restored_like_its_items(tiny: TwoStage, speech: Speech) -> None:
    mono, stereo = speech(9000), np.stack([speech(5000, seed=1), speech(5000, seed=2)])
    separately = [restore(tiny, item, 8000) for item in (mono, stereo)]
    for batch in ([mono, stereo], (mono, stereo)):
        restored = restore(tiny, batch, 8000)
        assert [item.shape for item in restored] == [(18000,), (2, 10000)]
        assert all(np.array_equal(item, expected) for item, expected in zip(restored, separately, strict=True))
    stack = np.stack([stereo, 0.1 * stereo])
    np.testing.assert_array_equal(restore(tiny, stack, 8000)[0], separately[1])
    tensors = restore(tiny, torch.from_numpy(stack), 8000)
    assert isinstance(tensors, Tensor)
    assert tensors.shape == (2, 2, 10000)
    rows = restore(tiny, stereo.tolist(), 8000)  # lists of numbers are one signal, not a batch
    assert rows.shape == (2, 10000)
    with pytest.raises(AudioError, match="wanted"):
        restore(tiny, np.zeros((0, 2, 100), np.float32), 8000)
