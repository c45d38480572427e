"""Claims about files that people have: what decodes is read, whatever number of samples a header gives for it."""

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


def whole(path: Path, **more: bool) -> np.ndarray:
    with Reader(path, **more) as reader:
        first, again = (np.concatenate(list(reader.blocks()), axis=1) for _ in range(2))
    assert np.abs(first - again).max() < 1e-5  # the second pass hears what the first did
    return first


def without_count(data: bytes) -> bytes:
    """An MP3 without the frame that says how many there are."""
    at = data.find(b"Info") if b"Info" in data else data.find(b"Xing")
    begin = at - next(n for n in (13, 21, 36) if data[at - n] == 0xFF)
    head = mpeg.parse(data[begin : begin + 4])
    assert head is not None
    return data[begin + head.length :]


def make(path: Path, sound: np.ndarray, **more: object) -> bytes:
    soundfile.write(path, sound.T, more.pop("rate", RATE), **more)
    return path.read_bytes()


def mp3(path: Path, sound: np.ndarray) -> bytes:
    """Of a bit rate that follows the sound."""
    with soundfile.SoundFile(path, "w", RATE, 1, format="MP3", bitrate_mode="VARIABLE", compression_level=0.2) as file:
        file.write(sound)
    return path.read_bytes()


def test_an_mp3_that_does_not_say_how_long_it_is(tmp_path: Path, speech: Speech) -> None:
    """Its first second is silent, of few bits: a guess from the first frame is far off."""
    inputs = np.concatenate([np.zeros(RATE, np.float32), speech(6 * RATE)])
    (tmp_path / "a.mp3").write_bytes(without_count(mp3(tmp_path / "whole.mp3", inputs)))
    guess = soundfile.info(tmp_path / "a.mp3").frames
    actual = whole(tmp_path / "a.mp3")
    assert abs(guess - len(inputs)) > RATE
    assert 0 <= actual.shape[1] - len(inputs) < 3 * 576
    assert sound_files.info(tmp_path / "a.mp3").frames == actual.shape[1]
    exact = whole(tmp_path / "whole.mp3")
    assert exact.shape == (1, len(inputs))
    lag = 1105  # of encoder and decoder, which the header tells
    assert np.abs(actual[0, lag : lag + 5 * RATE] - exact[0, : 5 * RATE]).max() < 1e-4
    with Reader(tmp_path / "a.mp3") as reader:
        assert np.abs(reader.read(3 * RATE, 500) - actual[:, 3 * RATE : 3 * RATE + 500]).max() < 1e-5


@pytest.mark.parametrize("tags", [b"", b"ID3\x04\0\0\0\0\x00\x0a" + bytes(10)])
@pytest.mark.parametrize("suffix", ["mp3", "ogg", "opus", "flac", "wav", "aiff"])
def test_joined_files_are_read_to_their_end(tmp_path: Path, speech: Speech, suffix: str, tags: bytes) -> None:
    if tags and suffix != "mp3":
        pytest.skip("a tag of MP3")
    parts = [speech(RATE, seed=1)[None], speech(RATE // 2 + 1, seed=2)[None]]
    for number, part in enumerate(parts):
        sound_files.write(tmp_path / f"{number}.{suffix}", part, RATE)
    joined = tags.join((tmp_path / f"{number}.{suffix}").read_bytes() for number in (0, 1))
    (tmp_path / f"a.{suffix}").write_bytes(joined)
    wanted = np.concatenate([whole(tmp_path / f"{number}.{suffix}") for number in (0, 1)], axis=1)
    actual = whole(tmp_path / f"a.{suffix}")
    assert actual.shape == wanted.shape == (1, RATE + RATE // 2 + 1)
    assert np.abs(actual - wanted).max() < 1e-4
    assert sound_files.info(tmp_path / f"a.{suffix}").frames == actual.shape[1]
    part, _ = sound_files.read(tmp_path / f"a.{suffix}", start=RATE - 100, frames=200)  # across the join
    assert np.abs(part - wanted[:, RATE - 100 : RATE + 100]).max() < 1e-4


def test_joined_files_of_two_kinds_are_not_cut_in_silence(tmp_path: Path, speech: Speech) -> None:
    one = make(tmp_path / "1.flac", speech(RATE))
    two = make(tmp_path / "2.flac", np.stack([speech(RATE)] * 2), rate=22050)
    (tmp_path / "a.flac").write_bytes(one + two)
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
def test_wavs_of_block_codecs_are_read_whole(
    tmp_path: Path, speech: Speech, subtype: str, rate: int, loss: float
) -> None:
    inputs = speech(30001, rate)
    data = bytearray(make(tmp_path / "a.wav", inputs, subtype=subtype, rate=rate))
    data[28:32] = bytes(4)  # bytes a second, as FFmpeg writes them of such codings
    (tmp_path / "a.wav").write_bytes(data)
    actual = whole(tmp_path / "a.wav")[0]
    assert 30001 - 320 < len(actual) < 30001 + 2048  # blocks are filled up, or begun with
    size = min(len(actual), 30001)
    assert np.sqrt(np.mean((actual[:size] - inputs[:size]) ** 2)) < loss * np.sqrt(np.mean(inputs**2))
    part, _ = sound_files.read(tmp_path / "a.wav", start=7001, frames=999)
    assert np.array_equal(part[0], actual[7001:8000])


@pytest.mark.parametrize("field", [28, 32])
def test_a_header_whose_other_numbers_are_wrong_is_not_truncated(tmp_path: Path, speech: Speech, field: int) -> None:
    data = bytearray(make(tmp_path / "a.wav", speech(5000), subtype="PCM_16"))
    data[field : field + 2] = (7).to_bytes(2, "little")
    (tmp_path / "a.wav").write_bytes(data)
    assert whole(tmp_path / "a.wav").shape == (1, 5000)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "caf", "w64", "rf64"])
@pytest.mark.parametrize("length", ["none", "2 GiB", "4 GiB", "SoX"])
def test_headers_from_a_pipe(tmp_path: Path, speech: Speech, suffix: str, length: str) -> None:
    """What was written where the writer could not come back to give the length."""
    inputs = (speech(5001) * 2**15).astype(np.int16)
    data = bytearray(make(tmp_path / f"a.{suffix}", inputs, subtype="PCM_16"))
    place = {"wav": 40, "aiff": 0, "au": 8, "caf": 0, "w64": 0, "rf64": 0}[suffix]
    if suffix == "aiff":
        place = data.find(b"SSND") + 4
    big, wide = suffix in ("aiff", "au", "caf"), suffix in ("caf", "w64", "rf64")
    if wide:
        place = {"caf": data.find(b"data") + 4, "w64": data.find(b"data\xf3") + 16, "rf64": 28}[suffix]
    unknown = {"none": 0, "2 GiB": 0x7FFFFFFF - 36, "4 GiB": 0xFFFFFFFF, "SoX": 0x7F000008}[length]
    if wide and length == "4 GiB":
        unknown = 0xFFFFFFFFFFFFFFFF
    data[place : place + (8 if wide else 4)] = unknown.to_bytes(8 if wide else 4, "big" if big else "little")
    (tmp_path / f"b.{suffix}").write_bytes(data)
    actual = whole(tmp_path / f"b.{suffix}")[0]
    assert np.array_equal(np.round(actual[:5001] * 2**15).astype(np.int16), inputs)
    assert len(actual) - 5001 in (0, 1)


def test_flac_from_a_pipe(tmp_path: Path, speech: Speech) -> None:
    data = bytearray(make(tmp_path / "a.flac", speech(70001)))
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # samples, 36 bits
    (tmp_path / "a.flac").write_bytes(data)
    assert sound_files.info(tmp_path / "a.flac").frames == 70001
    assert whole(tmp_path / "a.flac").shape == (1, 70001)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8", "ULAW"])
def test_sound_behind_the_end_that_a_header_tells(tmp_path: Path, speech: Speech, subtype: str) -> None:
    """Of a recorder that was switched off, or of more than 4 GiB: the length is that of an earlier moment."""
    data = bytearray(make(tmp_path / "whole.wav", speech(9000), subtype=subtype))
    at = data.find(b"data") + 4
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], "little") // 3 // 6 * 6).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    actual = whole(tmp_path / "a.wav")
    assert np.array_equal(actual[:, :9000], whole(tmp_path / "whole.wav"))
    assert sound_files.info(tmp_path / "a.wav").subtype == subtype


def test_chunks_and_zeros_behind_the_sound_are_none(tmp_path: Path, speech: Speech) -> None:
    data = make(tmp_path / "a.wav", speech(5000), subtype="PCM_16")
    (tmp_path / "b.wav").write_bytes(data + b"LIST" + struct.pack("<I", 300) + bytes([7]) * 300)
    (tmp_path / "c.wav").write_bytes(data + bytes(4000))
    for name in "bc":
        assert np.array_equal(whole(tmp_path / f"{name}.wav"), whole(tmp_path / "a.wav"))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
@pytest.mark.parametrize("suffix", ["wav", "aiff", "au"])
def test_rubbish_behind_the_end_is_none_and_said(tmp_path: Path, speech: Speech, suffix: str, subtype: str) -> None:
    data = make(tmp_path / f"a.{suffix}", speech(5000), subtype=subtype)
    wanted = whole(tmp_path / f"a.{suffix}")
    for seed, length in enumerate((2999, 50001)):
        rubbish = b"!?" + np.random.default_rng(seed).bytes(length)
        (tmp_path / f"b.{suffix}").write_bytes(data + rubbish)
        with sound_files.Reader(tmp_path / f"b.{suffix}") as reader:
            assert np.array_equal(np.concatenate(list(reader.blocks()), axis=1), wanted)
            assert [note for note in reader.notes if "are not sound and are not read" in note]


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_ogg_without_its_end(tmp_path: Path, speech: Speech, suffix: str) -> None:
    sound_files.write(tmp_path / f"a.{suffix}", speech(40000), RATE)
    wanted = whole(tmp_path / f"a.{suffix}")
    data = bytearray((tmp_path / f"a.{suffix}").read_bytes())
    data[data.rfind(b"OggS") + 5] &= ~4
    # the checksum of a page holds its flags: RFC 3533, section 6
    page = data[data.rfind(b"OggS") :]
    page[22:26] = bytes(4)
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1 ^ (0x04C11DB7 if register & 0x80000000 else 0)) & 0xFFFFFFFF
    page[22:26] = register.to_bytes(4, "little")
    (tmp_path / f"b.{suffix}").write_bytes(data[: -len(page)] + page)
    with Reader(tmp_path / f"b.{suffix}") as reader:
        assert np.array_equal(np.concatenate(list(reader.blocks()), axis=1), wanted)
        assert "not marked as the last" in reader.notes[0]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_salvage_takes_what_is_there(tmp_path: Path, speech: Speech, suffix: str) -> None:
    sound_files.write(tmp_path / f"a.{suffix}", speech(5 * RATE), RATE)
    data = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"b.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"(truncated|damaged).*--salvage reads the rest"):
        whole(tmp_path / f"b.{suffix}")
    with Reader(tmp_path / f"b.{suffix}", salvage=True) as reader:
        actual = np.concatenate(list(reader.blocks()), axis=1)
        assert any("missing" in note or "can be read" in note or "ends within" in note for note in reader.notes)
    size = actual.shape[1] - 4096
    assert size > RATE
    assert np.abs(actual[:, :size] - whole(tmp_path / f"a.{suffix}")[:, :size]).max() < 1e-4


def test_sixteen_bytes_that_are_missing_are_counted(tmp_path: Path, speech: Speech) -> None:
    data = make(tmp_path / "a.wav", speech(5000), subtype="PCM_16")
    (tmp_path / "a.wav").write_bytes(data[:-16])
    with pytest.raises(AudioError, match="truncated, 16 of 10000 bytes of sound are missing"):
        Reader(tmp_path / "a.wav")
    assert whole(tmp_path / "a.wav", salvage=True).shape == (1, 4992)


def test_a_length_that_is_only_nearly_unknown_is_a_promise(tmp_path: Path, speech: Speech) -> None:
    data = bytearray(make(tmp_path / "a.wav", speech(5000), subtype="PCM_16"))
    data[40:44] = (3_000_000_000).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    assert sound_data(tmp_path / "a.wav").missing == 3_000_000_000 - 10000  # type: ignore[union-attr]


def test_noise_named_mp3_is_said_to_be_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(60000))
    with pytest.raises(AudioError, match=r"noise\.mp3: not a sound file that can be read \((?!File does not)"):
        sound_files.read(tmp_path / "noise.mp3")
    assert capfd.readouterr().err == ""


def test_a_damaged_mp3_is_read_without_chatter(
    tmp_path: Path, speech: Speech, capfd: pytest.CaptureFixture[str]
) -> None:
    sound_files.write(tmp_path / "a.mp3", speech(3 * RATE), RATE)
    data = bytearray((tmp_path / "a.mp3").read_bytes())
    for place in range(2000, len(data), 997):
        data[place : place + 3] = b"\x5a\xff\x13"
    (tmp_path / "b.mp3").write_bytes(data)
    with pytest.raises(AudioError, match=r"b\.mp3: truncated, \d+ of \d+ samples can be read"):
        sound_files.read(tmp_path / "b.mp3")
    with Reader(tmp_path / "b.mp3", salvage=True) as reader:
        assert sum(block.shape[1] for block in reader.blocks()) > RATE // 2
        assert "can be read" in reader.notes[0]
    assert capfd.readouterr() == ("", "")


def test_a_window_is_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    with Window(tmp_path / "a", 10, 20, prefix=b"xyz", patches={12: b"AB"}) as window:
        assert window.read() == b"xyz" + bytes([10, 11]) + b"AB" + bytes(range(14, 20))
        assert (window.seek(-4, os.SEEK_END), window.read(2), window.tell()) == (9, bytes([16, 17]), 11)
        assert (window.seek(2), window.read(3)) == (2, b"z" + bytes([10, 11]))


@pytest.mark.parametrize(
    ("head", "frame"),
    [
        (b"\xff\xfb\x90\x00", mpeg.Frame(1, 3, 44100, 2, 1152, 417)),
        (b"\xff\xf3\x48\xc0", mpeg.Frame(2, 3, 16000, 1, 576, 144)),
        (b"\xff\xfd\x84\xc0", mpeg.Frame(1, 2, 48000, 1, 1152, 384)),
        (b"\xff\xfb\xf0\x00", None),
        (b"RIFF", None),
    ],
)
def test_heads_of_frames(head: bytes, frame: mpeg.Frame | None) -> None:
    assert mpeg.parse(head) == frame


def encode(path: Path, sound: np.ndarray, codec: str, rate: int, container: str) -> None:
    import av

    with av.open(str(path), "w", format=container) as file:
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


MEDIA = [
    ("a.m4a", "aac", 16000, "ipod"),
    ("a.aac", "aac", 16000, "adts"),
    ("a.mp4", "alac", 16000, "mp4"),
    ("a.webm", "libopus", 48000, "webm"),
    ("a.mka", "libopus", 48000, "matroska"),
]


@needs_av
@pytest.mark.parametrize(("name", "codec", "rate", "container"), MEDIA)
def test_media_are_read_as_a_stream(
    tmp_path: Path, speech: Speech, name: str, codec: str, rate: int, container: str
) -> None:
    inputs = speech(3 * RATE)
    encode(tmp_path / name, inputs, codec, rate, container)
    actual = whole(tmp_path / name)
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
def test_media_that_are_cut_are_truncated(tmp_path: Path, speech: Speech) -> None:
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
def test_media_that_are_none_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(np.random.default_rng(1).bytes(5000))
    with pytest.raises(AudioError, match=rf"{name}: (not a sound file|damaged|holds no s)") as error:
        sound_files.read(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("start", "what"),
    [(b"\0\0\0\x20ftypM4A ", "MP4"), (b"\x1aE\xdf\xa3", "Matroska"), (b"#!AMR\n", "AMR"), (b"\xff\xf1\x60\x40", "AAC")],
)
def test_without_the_extra_the_line_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, what: str
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(media_files, "find_spec", lambda name: None if name == "av" else original(name))
    (tmp_path / "a.bin").write_bytes(start + bytes(500))
    with pytest.raises(AudioError, match=rf"a\.bin: is {what}, which needs the extra media: pip install"):
        sound_files.read(tmp_path / "a.bin")


def test_folders_that_are_linked_and_files_without_an_ending(tmp_path: Path, speech: Speech) -> None:
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
    actual = [str(below) for _, below in sound_files.find([tmp_path / "in"], passed_over=passed_over)]
    assert [name for name in actual if "f.sph" not in name] == [
        *("a.aifc", "b.voc", "c.mp2", "d.mka", "e.wave", "take", "take.2")
    ]
    assert sum("f.sph" in name for name in actual) == 1
    assert [path.name for path in passed_over] == ["LICENSE", "notes.txt"]
    assert any("f.sph" in str(file) for file, _ in sound_files.find([f"{tmp_path}/in/**/*.sph"]))
