"""Tests of reading, writing, resampling and finding sound files."""

import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from twostage.audio import sound_files
from twostage.utils.errors import AudioError, OutputError


def noise(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((channels, frames))).astype(np.float32)


@pytest.mark.parametrize("suffix", sound_files.FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_is_read_back_with_its_length(tmp_path: Path, suffix: str, channels: int) -> None:
    inputs, path = noise(5001, channels), tmp_path / f"a.{suffix}"
    sound_files.write(path, inputs, 16000)
    read, rate = sound_files.read(path)
    assert rate == 16000
    assert read.shape == inputs.shape
    if sound_files.FORMATS[suffix][1] not in sound_files.LOSSY:
        assert np.abs(read - inputs).max() < 1e-4


def test_a_part_of_a_file_is_read(tmp_path: Path) -> None:
    inputs = noise(1000, 2)
    sound_files.write(tmp_path / "a.wav", inputs, 8000, subtype="FLOAT")
    assert np.array_equal(sound_files.read(tmp_path / "a.wav", start=100, frames=50)[0], inputs[:, 100:150])
    assert np.array_equal(sound_files.read(tmp_path / "a.wav", start=990)[0], inputs[:, 990:])


@pytest.mark.parametrize(
    ("name", "subtype", "expected"),
    [
        ("a.wav", "PCM_24", ("WAV", "PCM_24")),
        ("a.wav", "FLOAT", ("WAV", "FLOAT")),
        ("a.wav", "VORBIS", ("WAV", "PCM_16")),
        ("a.wav", "ULAW", ("WAV", "PCM_16")),
        ("a.flac", "PCM_16", ("FLAC", "PCM_16")),
        ("a.FLAC", "FLOAT", ("FLAC", "PCM_24")),
        ("a.opus", "PCM_24", ("OGG", "OPUS")),
        ("a.mp3", None, ("MP3", "MPEG_LAYER_III")),
    ],
)
def test_the_subtype_is_kept_if_the_output_format_supports_it(
    name: str, subtype: str | None, expected: tuple[str, str]
) -> None:
    assert sound_files.coding_for(name, subtype) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not a sound" * 40, "not a sound file"),
        (b"RIFF\x00\x00", "not a sound file"),
        (None, "no such"),
    ],
)
def test_an_unreadable_file_is_an_error_of_one_line_that_names_it(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as error:
        sound_files.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "caf", "w64", "rf64"])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_an_error(tmp_path: Path, suffix: str, fraction: float) -> None:
    sound_files.write(tmp_path / f"whole.{suffix}", noise(64000), 16000)
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(AudioError, match=r"cut\.\w+: (truncated|damaged|not a sound file)"):
        sound_files.read(path)


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0xFFFFFFFF])
def test_a_header_with_a_placeholder_for_the_length_is_read(tmp_path: Path, length: int) -> None:
    sound_files.write(tmp_path / "a.wav", noise(1000), 16000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[4:8] = data[40:44] = length.to_bytes(4, "little")
    (tmp_path / "b.wav").write_bytes(data)
    assert sound_files.read(tmp_path / "b.wav")[0].shape == (1, 1000)


def test_a_file_without_samples_is_an_error(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((0, 1)), 16000)
    with pytest.raises(AudioError, match=r"a\.wav: holds no samples"):
        sound_files.read(tmp_path / "a.wav")


def test_an_existing_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    sound_files.write(tmp_path / "a.wav", noise(10), 16000)
    with pytest.raises(OutputError, match="exists already"):
        sound_files.write(tmp_path / "a.wav", noise(20), 16000)
    assert sound_files.info(tmp_path / "a.wav").frames == 10
    sound_files.write(tmp_path / "a.wav", noise(20), 16000, overwrite=True)
    assert sound_files.info(tmp_path / "a.wav").frames == 20


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_an_interrupted_writer_leaves_no_file(tmp_path: Path, kind: type[BaseException]) -> None:
    with pytest.raises(kind), sound_files.Writer(tmp_path / "a.wav", 16000, 1) as writer:  # noqa: PT012
        writer.write(noise(100))
        raise kind
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "rate", "channels"), [("a.mp3", 7000, 1), ("a.mp3", 16000, 3), ("a.flac", 700000, 1)])
def test_rates_and_channels_that_a_format_does_not_support_are_refused(
    tmp_path: Path, name: str, rate: int, channels: int
) -> None:
    with pytest.raises(AudioError, match=rf"{name}: cannot write {channels} channel\(s\) at {rate} Hz"):
        sound_files.write(tmp_path / name, noise(10, channels), rate)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_files, "partial_name", lambda path: _FullDiskPath())
    with pytest.raises(AudioError, match=r"a\.wav: cannot be written \(No space left on device\)"):
        sound_files.write(tmp_path / "a.wav", noise(200000), 16000)


class _FullDiskPath(type(Path())):  # type: ignore[misc]
    """A path that opens /dev/full and is never removed."""

    def __new__(cls) -> "_FullDiskPath":
        return super().__new__(cls, "/dev/full")

    def __init__(self) -> None:
        if sys.version_info >= (3, 12):  # where the path is set here and not in __new__
            super().__init__("/dev/full")

    def unlink(self, missing_ok: bool = False) -> None:
        pass


@pytest.mark.parametrize("rates", [(8000, 16000), (44100, 16000), (48000, 16000), (16000, 44100), (16000, 16000)])
@pytest.mark.parametrize("frames", [1, 2, 999, 20001])
def test_resampling_has_the_exact_length(rates: tuple[int, int], frames: int) -> None:
    expected_frames = max(1, round(frames * rates[1] / rates[0]))
    inputs = noise(frames, 2)
    whole = sound_files.resample(inputs, *rates)
    assert whole.shape == (2, expected_frames)
    blocks = np.array_split(inputs, 7, axis=1)
    streamed = np.concatenate(list(sound_files.resampled(blocks, *rates, 2)), axis=1)
    assert np.allclose(streamed, whole, atol=1e-6)


def test_resampling_keeps_a_tone() -> None:
    time = np.arange(48000) / 48000
    out = sound_files.resample(np.sin(2 * np.pi * 440 * time).astype(np.float32), 48000, 16000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(out - expected)[100:-100].max() < 1e-3


def test_match_length_cuts_or_pads_with_zeros() -> None:
    inputs = np.arange(6.0).reshape(2, 3)
    assert sound_files.match_length(inputs, 2).tolist() == [[0, 1], [3, 4]]
    assert sound_files.match_length(inputs, 4).tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]


def test_find_lists_sound_files_of_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("a.wav", "b.txt", "s/c.FLAC", "s/t/d.ogg", ".hidden/e.wav", "s/.f.wav.1.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found_names(*paths: str) -> list[str]:
        return [str(relative) for _, relative in sound_files.find(tmp_path / p for p in paths)]

    assert found_names(".") == ["a.wav", "s/c.FLAC", "s/t/d.ogg"]
    assert found_names("b.txt") == ["b.txt"]
    assert found_names("*.wav", "s") == ["a.wav", "c.FLAC", "t/d.ogg"]
    assert found_names("**/*.ogg") == ["s/t/d.ogg"]
    assert found_names("s/*") == ["c.FLAC", "t/d.ogg"]
    (tmp_path / "none").mkdir()
    with pytest.raises(AudioError, match="none: no sound files"):
        found_names("none")


@pytest.mark.parametrize("rate", [1, 999, 1_000_001, 2**31 - 1])
def test_sample_rates_beyond_the_supported_range_are_refused(tmp_path: Path, rate: int) -> None:
    sound_files.write(tmp_path / "a.wav", noise(100), 16000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "b.wav").write_bytes(data)
    with pytest.raises(AudioError, match=rf"b\.wav: its sample rate is {rate} Hz, must be 1000 to 1000000"):
        sound_files.info(tmp_path / "b.wav")


@pytest.mark.parametrize("name", ["a.au", "a.snd", "a.vox", "a.raw", "a.RAW"])
def test_a_file_without_a_header_is_refused_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(AudioError, match=rf"{name}: not a sound file that can be read \(it has no header"):
        sound_files.read(tmp_path / name)


def test_a_flac_with_a_damaged_first_frame_is_an_error(tmp_path: Path) -> None:
    sound_files.write(tmp_path / "a.flac", noise(4800), 16000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    start = data.index(b"\xff\xf8", 42)  # the first frame
    data[start : start + 200] = bytes(200)
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(AudioError, match=r"a\.flac: (damaged|truncated|not a sound file)"):
        sound_files.read(tmp_path / "a.flac")


@pytest.mark.parametrize("name", ["x" * 251 + ".wav", "\uac00" * 83 + ".wav", os.fsdecode(b"\xff\xfe.wav"), "a\nb.wav"])
def test_every_name_that_the_file_system_allows_is_written_and_read(tmp_path: Path, name: str) -> None:
    sound_files.write(tmp_path / name, noise(100), 16000)
    assert sound_files.read(tmp_path / name)[0].shape == (1, 100)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a" * 300 + ".wav", "a\0b.wav"])
def test_a_name_that_the_file_system_does_not_allow_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(AudioError, match="cannot be read"):
        sound_files.read(tmp_path / name)


def test_more_channels_than_the_ogg_encoder_supports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"a\.ogg: cannot write 257 channels as OGG"):
        sound_files.write(tmp_path / "a.ogg", noise(100, 257), 16000)
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_disappears_is_named(tmp_path: Path) -> None:
    def write() -> None:
        with sound_files.Writer(tmp_path / "out" / "a.wav", 16000, 1) as writer:
            writer.write(noise(100))
            (tmp_path / "out").rename(tmp_path / "gone")

    with pytest.raises(AudioError, match=r"out/a\.wav|\.part: no such file"):
        write()


def test_an_interrupt_while_the_file_is_opened_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = soundfile.SoundFile

    def interrupted(*args: object, **kwargs: object) -> None:
        original(*args, **kwargs).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(soundfile, "SoundFile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sound_files.Writer(tmp_path / "a.wav", 16000, 1)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_never_entered_leaves_no_file(tmp_path: Path) -> None:
    writer = sound_files.Writer(tmp_path / "a.wav", 16000, 1)
    assert len(list(tmp_path.iterdir())) == 1
    del writer
    gc.collect()
    assert list(tmp_path.iterdir()) == []
