"""Tests of unusual files: whatever decodes is read, even if a header gives a wrong number of samples."""

import importlib.util
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from twostage.audio import media_files, mpeg, sound_files
from twostage.audio.headers import sound_data
from twostage.audio.sound_files import Reader
from twostage.audio.window import Window
from twostage.utils.errors import AudioError

Speech = Callable[..., np.ndarray]
RATE = 16000
needs_av = pytest.mark.skipif(not media_files.installed(), reason="needs the extra media")


def read_all(path: Path, **options: bool) -> np.ndarray:
    """Read all samples, (C, T), twice: the second pass must yield what the first one did."""
    with Reader(path, **options) as reader:
        first, second = (np.concatenate(list(reader.blocks()), axis=1) for _ in range(2))
    assert np.abs(first - second).max() < 1e-5
    return first


def without_count(data: bytes) -> bytes:
    """An MP3 without its first frame, which gives the number of frames."""
    tag = data.find(b"Info") if b"Info" in data else data.find(b"Xing")
    start = tag - next(n for n in (13, 21, 36) if data[tag - n] == 0xFF)
    header = mpeg.parse(data[start : start + 4])
    assert header is not None
    return data[start + header.length :]


def write(path: Path, sound: np.ndarray, **options: object) -> bytes:
    """Write a file with soundfile, and return its bytes."""
    soundfile.write(path, sound.T, options.pop("rate", RATE), **options)
    return path.read_bytes()


def variable_rate_mp3(path: Path, sound: np.ndarray) -> bytes:
    """Write an MP3 whose bit rate varies with the sound, and return its bytes."""
    with soundfile.SoundFile(path, "w", RATE, 1, format="MP3", bitrate_mode="VARIABLE", compression_level=0.2) as file:
        file.write(sound)
    return path.read_bytes()


def test_an_mp3_without_a_frame_count_is_read_whole(tmp_path: Path, speech: Speech) -> None:
    """The first second is silence, which takes few bits, so that an estimate from the first frame is far off."""
    inputs = np.concatenate([np.zeros(RATE, np.float32), speech(6 * RATE)])
    (tmp_path / "a.mp3").write_bytes(without_count(variable_rate_mp3(tmp_path / "whole.mp3", inputs)))
    estimated = soundfile.info(tmp_path / "a.mp3").frames
    actual = read_all(tmp_path / "a.mp3")
    assert abs(estimated - len(inputs)) > RATE
    assert 0 <= actual.shape[1] - len(inputs) < 3 * 576
    assert sound_files.info(tmp_path / "a.mp3").frames == actual.shape[1]
    exact = read_all(tmp_path / "whole.mp3")
    assert exact.shape == (1, len(inputs))
    lag = 1105  # delay of encoder and decoder, which only the header gives
    assert np.abs(actual[0, lag : lag + 5 * RATE] - exact[0, : 5 * RATE]).max() < 1e-4
    with Reader(tmp_path / "a.mp3") as reader:
        assert np.abs(reader.read(3 * RATE, 500) - actual[:, 3 * RATE : 3 * RATE + 500]).max() < 1e-5


@pytest.mark.parametrize("tags", [b"", b"ID3\x04\0\0\0\0\x00\x0a" + bytes(10)])
@pytest.mark.parametrize("suffix", ["mp3", "ogg", "opus", "flac", "wav", "aiff"])
def test_concatenated_files_are_read_to_the_end(tmp_path: Path, speech: Speech, suffix: str, tags: bytes) -> None:
    if tags and suffix != "mp3":
        pytest.skip("only MP3 files have this tag")
    parts = [speech(RATE, seed=1)[None], speech(RATE // 2 + 1, seed=2)[None]]
    for number, part in enumerate(parts):
        sound_files.write(tmp_path / f"{number}.{suffix}", part, RATE)
    joined = tags.join((tmp_path / f"{number}.{suffix}").read_bytes() for number in (0, 1))
    (tmp_path / f"a.{suffix}").write_bytes(joined)
    expected = np.concatenate([read_all(tmp_path / f"{number}.{suffix}") for number in (0, 1)], axis=1)
    actual = read_all(tmp_path / f"a.{suffix}")
    assert actual.shape == expected.shape == (1, RATE + RATE // 2 + 1)
    assert np.abs(actual - expected).max() < 1e-4
    assert sound_files.info(tmp_path / f"a.{suffix}").frames == actual.shape[1]
    part, _ = sound_files.read(tmp_path / f"a.{suffix}", start=RATE - 100, frames=200)  # across the join
    assert np.abs(part - expected[:, RATE - 100 : RATE + 100]).max() < 1e-4


def test_concatenated_files_of_different_formats_are_an_error(tmp_path: Path, speech: Speech) -> None:
    mono = write(tmp_path / "1.flac", speech(RATE))
    stereo = write(tmp_path / "2.flac", np.stack([speech(RATE)] * 2), rate=22050)
    (tmp_path / "a.flac").write_bytes(mono + stereo)
    with pytest.raises(
        AudioError, match=r"a\.flac: holds 2 recordings .* 2 channels at 22050 Hz, the first 1 at 16000"
    ):
        Reader(tmp_path / "a.flac")
    with Reader(tmp_path / "a.flac", salvage=True) as reader:
        assert sum(block.shape[1] for block in reader.blocks()) == RATE
        assert "number 2 has 2 channels" in reader.notes[0]


@pytest.mark.parametrize(
    ("subtype", "rate", "loss"),
    [
        ("IMA_ADPCM", RATE, 0.05),
        ("MS_ADPCM", RATE, 0.05),
        ("GSM610", 8000, 0.5),
        ("G721_32", 8000, 0.1),
        ("NMS_ADPCM_16", 8000, 0.5),
        ("NMS_ADPCM_24", 8000, 0.3),
        ("NMS_ADPCM_32", 8000, 0.3),
    ],
)
def test_wav_files_with_block_codecs_are_read_whole(
    tmp_path: Path, speech: Speech, subtype: str, rate: int, loss: float
) -> None:
    inputs = speech(30001, rate)
    data = bytearray(write(tmp_path / "a.wav", inputs, subtype=subtype, rate=rate))
    data[28:32] = bytes(4)  # bytes per second, as FFmpeg writes them for such codecs
    (tmp_path / "a.wav").write_bytes(data)
    actual = read_all(tmp_path / "a.wav")[0]
    assert 30001 - 320 < len(actual) < 30001 + 2048  # the first or the last block may be padded
    size = min(len(actual), 30001)
    assert np.sqrt(np.mean((actual[:size] - inputs[:size]) ** 2)) < loss * np.sqrt(np.mean(inputs**2))
    part, _ = sound_files.read(tmp_path / "a.wav", start=7001, frames=999)
    assert np.array_equal(part[0], actual[7001:8000])


@pytest.mark.parametrize("field", [28, 32])
def test_wrong_rates_and_alignments_in_a_header_do_not_truncate_the_file(
    tmp_path: Path, speech: Speech, field: int
) -> None:
    data = bytearray(write(tmp_path / "a.wav", speech(5000), subtype="PCM_16"))
    data[field : field + 2] = (7).to_bytes(2, "little")
    (tmp_path / "a.wav").write_bytes(data)
    assert read_all(tmp_path / "a.wav").shape == (1, 5000)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "caf", "w64", "rf64"])
@pytest.mark.parametrize("length", ["none", "2 GiB", "4 GiB", "SoX"])
def test_headers_written_to_a_pipe_are_read(tmp_path: Path, speech: Speech, suffix: str, length: str) -> None:
    """A writer cannot seek back in a pipe, so that the header has a placeholder for the length."""
    inputs = (speech(5001) * 2**15).astype(np.int16)
    data = bytearray(write(tmp_path / f"a.{suffix}", inputs, subtype="PCM_16"))
    position = {"wav": 40, "aiff": 0, "au": 8, "caf": 0, "w64": 0, "rf64": 0}[suffix]
    if suffix == "aiff":
        position = data.find(b"SSND") + 4
    big_endian, is_64_bit = suffix in ("aiff", "au", "caf"), suffix in ("caf", "w64", "rf64")
    if is_64_bit:
        position = {"caf": data.find(b"data") + 4, "w64": data.find(b"data\xf3") + 16, "rf64": 28}[suffix]
    placeholder = {"none": 0, "2 GiB": 0x7FFFFFFF - 36, "4 GiB": 0xFFFFFFFF, "SoX": 0x7F000008}[length]
    if is_64_bit and length == "4 GiB":
        placeholder = 0xFFFFFFFFFFFFFFFF
    data[position : position + (8 if is_64_bit else 4)] = placeholder.to_bytes(
        8 if is_64_bit else 4, "big" if big_endian else "little"
    )
    (tmp_path / f"b.{suffix}").write_bytes(data)
    actual = read_all(tmp_path / f"b.{suffix}")[0]
    assert np.array_equal(np.round(actual[:5001] * 2**15).astype(np.int16), inputs)
    assert len(actual) - 5001 in (0, 1)


def test_a_flac_written_to_a_pipe_is_read(tmp_path: Path, speech: Speech) -> None:
    data = bytearray(write(tmp_path / "a.flac", speech(70001)))
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # number of samples, 36 bits
    (tmp_path / "a.flac").write_bytes(data)
    assert sound_files.info(tmp_path / "a.flac").frames == 70001
    assert read_all(tmp_path / "a.flac").shape == (1, 70001)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8", "ULAW"])
def test_samples_beyond_the_length_in_the_header_are_read(tmp_path: Path, speech: Speech, subtype: str) -> None:
    """A recorder that lost power, or a file of more than 4 GiB, has a header with too small a length."""
    data = bytearray(write(tmp_path / "whole.wav", speech(9000), subtype=subtype))
    position = data.find(b"data") + 4
    data[position : position + 4] = (int.from_bytes(data[position : position + 4], "little") // 3 // 6 * 6).to_bytes(
        4, "little"
    )
    (tmp_path / "a.wav").write_bytes(data)
    actual = read_all(tmp_path / "a.wav")
    assert np.array_equal(actual[:, :9000], read_all(tmp_path / "whole.wav"))
    assert sound_files.info(tmp_path / "a.wav").subtype == subtype


def test_chunks_and_zeros_behind_the_samples_are_not_read_as_sound(tmp_path: Path, speech: Speech) -> None:
    data = write(tmp_path / "a.wav", speech(5000), subtype="PCM_16")
    (tmp_path / "b.wav").write_bytes(data + b"LIST" + struct.pack("<I", 300) + bytes([7]) * 300)
    (tmp_path / "c.wav").write_bytes(data + bytes(4000))
    for name in "bc":
        assert np.array_equal(read_all(tmp_path / f"{name}.wav"), read_all(tmp_path / "a.wav"))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
@pytest.mark.parametrize("suffix", ["wav", "aiff", "au"])
def test_arbitrary_bytes_behind_the_samples_are_not_read_and_noted(
    tmp_path: Path, speech: Speech, suffix: str, subtype: str
) -> None:
    data = write(tmp_path / f"a.{suffix}", speech(5000), subtype=subtype)
    expected = read_all(tmp_path / f"a.{suffix}")
    for seed, length in enumerate((2999, 50001)):
        extra = b"!?" + np.random.default_rng(seed).bytes(length)
        (tmp_path / f"b.{suffix}").write_bytes(data + extra)
        with sound_files.Reader(tmp_path / f"b.{suffix}") as reader:
            assert np.array_equal(np.concatenate(list(reader.blocks()), axis=1), expected)
            assert [note for note in reader.notes if "are not sound and are not read" in note]


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_an_ogg_without_a_last_page_is_read_and_noted(tmp_path: Path, speech: Speech, suffix: str) -> None:
    sound_files.write(tmp_path / f"a.{suffix}", speech(40000), RATE)
    expected = read_all(tmp_path / f"a.{suffix}")
    data = bytearray((tmp_path / f"a.{suffix}").read_bytes())
    data[data.rfind(b"OggS") + 5] &= ~4
    # the checksum of a page covers its flags: RFC 3533, section 6
    page = data[data.rfind(b"OggS") :]
    page[22:26] = bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum & 0x80000000 else 0)) & 0xFFFFFFFF
    page[22:26] = checksum.to_bytes(4, "little")
    (tmp_path / f"b.{suffix}").write_bytes(data[: -len(page)] + page)
    with Reader(tmp_path / f"b.{suffix}") as reader:
        assert np.array_equal(np.concatenate(list(reader.blocks()), axis=1), expected)
        assert "not marked as the last" in reader.notes[0]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_salvage_reads_the_remaining_part_of_a_truncated_file(tmp_path: Path, speech: Speech, suffix: str) -> None:
    sound_files.write(tmp_path / f"a.{suffix}", speech(5 * RATE), RATE)
    data = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"b.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"(truncated|damaged).*--salvage reads the rest"):
        read_all(tmp_path / f"b.{suffix}")
    with Reader(tmp_path / f"b.{suffix}", salvage=True) as reader:
        actual = np.concatenate(list(reader.blocks()), axis=1)
        assert any("missing" in note or "can be read" in note or "ends within" in note for note in reader.notes)
    size = actual.shape[1] - 4096
    assert size > RATE
    assert np.abs(actual[:, :size] - read_all(tmp_path / f"a.{suffix}")[:, :size]).max() < 1e-4


def test_missing_bytes_are_counted(tmp_path: Path, speech: Speech) -> None:
    data = write(tmp_path / "a.wav", speech(5000), subtype="PCM_16")
    (tmp_path / "a.wav").write_bytes(data[:-16])
    with pytest.raises(AudioError, match="truncated, 16 of 10000 bytes of sound are missing"):
        Reader(tmp_path / "a.wav")
    assert read_all(tmp_path / "a.wav", salvage=True).shape == (1, 4992)


def test_a_large_length_that_is_no_placeholder_is_taken_as_given(tmp_path: Path, speech: Speech) -> None:
    data = bytearray(write(tmp_path / "a.wav", speech(5000), subtype="PCM_16"))
    data[40:44] = (3_000_000_000).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    assert sound_data(tmp_path / "a.wav").missing == 3_000_000_000 - 10000  # type: ignore[union-attr]


def test_random_bytes_named_mp3_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(60000))
    with pytest.raises(AudioError, match=r"noise\.mp3: not a sound file that can be read \((?!File does not)"):
        sound_files.read(tmp_path / "noise.mp3")
    assert capfd.readouterr().err == ""


def test_a_damaged_mp3_is_reported_without_output_of_the_decoder(
    tmp_path: Path, speech: Speech, capfd: pytest.CaptureFixture[str]
) -> None:
    sound_files.write(tmp_path / "a.mp3", speech(3 * RATE), RATE)
    data = bytearray((tmp_path / "a.mp3").read_bytes())
    for position in range(2000, len(data), 997):
        data[position : position + 3] = b"\x5a\xff\x13"
    (tmp_path / "b.mp3").write_bytes(data)
    with pytest.raises(AudioError, match=r"b\.mp3: truncated, \d+ of \d+ samples can be read"):
        sound_files.read(tmp_path / "b.mp3")
    with Reader(tmp_path / "b.mp3", salvage=True) as reader:
        assert sum(block.shape[1] for block in reader.blocks()) > RATE // 2
        assert "can be read" in reader.notes[0]
    assert capfd.readouterr() == ("", "")


def test_a_window_reads_and_seeks_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    with Window(tmp_path / "a", 10, 20, prefix=b"xyz", patches={12: b"AB"}) as window:
        assert window.read() == b"xyz" + bytes([10, 11]) + b"AB" + bytes(range(14, 20))
        assert (window.seek(-4, os.SEEK_END), window.read(2), window.tell()) == (9, bytes([16, 17]), 11)
        assert (window.seek(2), window.read(3)) == (2, b"z" + bytes([10, 11]))


@pytest.mark.parametrize(
    ("header", "frame"),
    [
        (b"\xff\xfb\x90\x00", mpeg.Frame(1, 3, 44100, 2, 1152, 417)),
        (b"\xff\xf3\x48\xc0", mpeg.Frame(2, 3, 16000, 1, 576, 144)),
        (b"\xff\xfd\x84\xc0", mpeg.Frame(1, 2, 48000, 1, 1152, 384)),
        (b"\xff\xfb\xf0\x00", None),
        (b"RIFF", None),
    ],
)
def test_headers_of_mpeg_frames_are_parsed(header: bytes, frame: mpeg.Frame | None) -> None:
    assert mpeg.parse(header) == frame


def encode(path: Path, sound: np.ndarray, codec: str, rate: int, container: str) -> None:
    import av

    with av.open(str(path), "w", format=container) as file:
        file.metadata["title"] = TITLE
        stream = file.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        fifo = av.AudioFifo()
        resampler = av.AudioResampler(stream.format, "mono", rate)
        for chunk in [*resampler.resample(frame), *resampler.resample(None)]:
            fifo.write(chunk)
        while (chunk := fifo.read(stream.codec_context.frame_size or 1024, True)) is not None and chunk.samples:
            file.mux(stream.encode(chunk))
        file.mux(stream.encode(None))


TITLE = "a title"
MEDIA = [
    ("a.m4a", "aac", 16000, "ipod"),
    ("a.aac", "aac", 16000, "adts"),
    ("a.mp4", "alac", 16000, "mp4"),
    ("a.webm", "libopus", 48000, "webm"),
    ("a.mka", "libopus", 48000, "matroska"),
]


@needs_av
@pytest.mark.parametrize(("name", "codec", "rate", "container"), MEDIA)
def test_media_files_are_read_in_blocks(
    tmp_path: Path, speech: Speech, name: str, codec: str, rate: int, container: str
) -> None:
    inputs = speech(3 * RATE)
    encode(tmp_path / name, inputs, codec, rate, container)
    actual = read_all(tmp_path / name)
    info = sound_files.info(tmp_path / name)
    assert (info.sample_rate, info.channels) == (rate, 1)
    assert info.seconds == pytest.approx(3.0, abs=0.15)
    assert actual.shape[1] / rate == pytest.approx(3.0, abs=0.15)
    decoded = sound_files.resample(actual, rate, RATE)[0]
    lag = int(np.argmax(np.correlate(decoded[: 2 * RATE], inputs[: 2 * RATE - 3000], "valid")))
    size = min(len(decoded) - lag, len(inputs)) - RATE
    assert np.corrcoef(decoded[lag : lag + size], inputs[:size])[0, 1] > 0.98
    with Reader(tmp_path / name) as reader:
        assert max(block.shape[1] for block in reader.blocks(5000)) == 5000
        assert np.array_equal(reader.read(9000, 800), actual[:, 9000:9800])


@needs_av
def test_a_media_file_with_a_tag_that_cannot_be_decoded_is_read(tmp_path: Path, speech: Speech) -> None:
    encode(tmp_path / "a.m4a", speech(RATE), "aac", RATE, "ipod")
    data, no_unicode = (tmp_path / "a.m4a").read_bytes(), bytes([0xFF, 0xFE, 0xC3]) * len(TITLE)
    assert TITLE.encode() in data
    (tmp_path / "b.m4a").write_bytes(data.replace(TITLE.encode(), no_unicode[: len(TITLE)]))
    assert np.array_equal(read_all(tmp_path / "b.m4a"), read_all(tmp_path / "a.m4a"))


@needs_av
def test_a_truncated_media_file_is_an_error_and_can_be_salvaged(tmp_path: Path, speech: Speech) -> None:
    encode(tmp_path / "a.webm", speech(3 * RATE), "libopus", 48000, "webm")
    data = (tmp_path / "a.webm").read_bytes()
    (tmp_path / "a.webm").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"a\.webm: truncated, 1\.\d\d of 3\.\d\d s are missing \(--salvage"):
        Reader(tmp_path / "a.webm")
    with Reader(tmp_path / "a.webm", salvage=True) as reader:
        assert sum(block.shape[1] for block in reader.blocks()) / 48000 == pytest.approx(1.5, abs=0.3)
        assert reader.notes[0].startswith("truncated, 1.")


@needs_av
@pytest.mark.parametrize("name", ["noise.m4a", "noise.aac", "noise.webm", "noise.amr"])
def test_random_bytes_named_as_media_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(np.random.default_rng(1).bytes(5000))
    with pytest.raises(AudioError, match=rf"{name}: (not a sound file|damaged|holds no s)") as error:
        sound_files.read(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("start", "container"),
    [(b"\0\0\0\x20ftypM4A ", "MP4"), (b"\x1aE\xdf\xa3", "Matroska"), (b"#!AMR\n", "AMR"), (b"\xff\xf1\x60\x40", "AAC")],
)
def test_without_the_extra_media_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, container: str
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(media_files, "find_spec", lambda name: None if name == "av" else original(name))
    (tmp_path / "a.bin").write_bytes(start + bytes(500))
    with pytest.raises(AudioError, match=rf"a\.bin: is {container}, which needs the extra media: pip install"):
        sound_files.read(tmp_path / "a.bin")


def test_linked_folders_are_searched_once_and_files_without_suffix_by_content(tmp_path: Path, speech: Speech) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "other" / "deep").mkdir(parents=True)
    for name in ("in/a.aifc", "in/b.voc", "in/c.mp2", "in/d.mka", "in/e.wave", "other/deep/f.sph", "in/notes.txt"):
        (tmp_path / name).touch()
    sound_files.write(tmp_path / "x.wav", speech(100), RATE)
    sound_files.write(tmp_path / "x.mp3", speech(9000), RATE)
    (tmp_path / "x.wav").rename(tmp_path / "in" / "take")
    (tmp_path / "x.mp3").rename(tmp_path / "in" / "take.2")
    (tmp_path / "in" / "LICENSE").write_text("Permission is hereby granted")
    (tmp_path / "in" / "linked").symlink_to("../other")
    (tmp_path / "in" / "linked2").symlink_to("../other/deep")
    (tmp_path / "other" / "up").symlink_to("..")
    passed_over: list[Path] = []
    names = [str(relative) for _, relative in sound_files.find([tmp_path / "in"], passed_over=passed_over)]
    assert [name for name in names if "f.sph" not in name] == [
        *("a.aifc", "b.voc", "c.mp2", "d.mka", "e.wave", "take", "take.2")
    ]
    assert sum("f.sph" in name for name in names) == 1
    assert [path.name for path in passed_over] == ["LICENSE", "notes.txt"]
    assert any("f.sph" in str(file) for file, _ in sound_files.find([f"{tmp_path}/in/**/*.sph"]))
