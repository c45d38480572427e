"""Damaged and hostile files, depending only on a random generator, which tests/run_torture.py feeds to the commands.

Every function takes intact bytes, or nothing, and returns bytes that may be damaged. A mutation is a name and a
function of (rng, bytes); a table of mutations by kind of file is at the end of each section.
"""

import io
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import soundfile

Rng = np.random.Generator
Mutation = Callable[[Rng, bytes], bytes]

RATE = 16000
DEEP = 100_000  # levels of nesting, beyond the limit of recursive parsers
LONG = 10_000  # digits, beyond Python's limit for integers
# values that may replace a value in a file
VALUES: tuple[Any, ...] = (0, -1, 1, 3, 10**6, 10**9, 2**31, 2**63, 10**30, -(2**63), 0.5, 1e308, -1e-308, True, None)
VALUES += ("", "x", "0", [], {}, [[]], [1] * 1000, {"a": 1}, float("nan"), float("inf"), float("-inf"))


def speech(rng: Rng, seconds: float = 0.3, sample_rate: int = RATE, channels: int = 1) -> np.ndarray:
    """A voice-like sound, (T, C) float32, at about -20 dBFS."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    pitch = rng.uniform(90, 220, channels)
    harmonics = [np.sin(2 * np.pi * np.outer(time, k * pitch)) / k for k in range(1, 8)]
    voice = np.sum(harmonics, axis=0)
    return (0.1 * voice + 1e-3 * rng.standard_normal(voice.shape)).astype(np.float32)


def encoded(sound: np.ndarray, sample_rate: int, container: str, coding: str) -> bytes:
    """Encode (T, C) samples as the bytes of a file, reproducibly."""
    file = io.BytesIO()
    soundfile.write(file, sound, sample_rate, format=container, subtype=coding)
    content = bytearray(file.getvalue())
    if (peak := content.find(b"PEAK")) >= 0:
        content[peak + 12 : peak + 16] = bytes(4)  # the time of day
    for start, stop in _ogg_pages(content) if container == "OGG" else ():
        content[start + 14 : start + 18] = b"torn"  # the serial number, which is random otherwise
        content[start:stop] = _ogg_summed(content[start:stop])
    return bytes(content)


def _ogg_pages(content: bytes | bytearray) -> list[tuple[int, int]]:
    """The start and end of each page."""
    starts = [i for i in range(len(content) - 27) if content[i : i + 4] == b"OggS"]
    return list(zip(starts, [*starts[1:], len(content)], strict=True))


def _ogg_summed(page: bytes | bytearray) -> bytes:
    """A page with its correct checksum."""
    zeroed = bytes(page[:22]) + bytes(4) + bytes(page[26:])
    return zeroed[:22] + struct.pack("<I", _ogg_checksum(zeroed)) + zeroed[26:]


# damage of any file


def flipped(rng: Rng, content: bytes) -> bytes:
    """Flip some bits anywhere."""
    return _flipped(rng, content, len(content))


def head_flipped(rng: Rng, content: bytes) -> bytes:
    """Flip some bits of the first hundred bytes, where headers are."""
    return _flipped(rng, content, min(100, len(content)))


def _flipped(rng: Rng, content: bytes, end: int) -> bytes:
    changed = bytearray(content)
    for position in rng.integers(0, end, size=int(rng.integers(1, 12))):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(rng: Rng, content: bytes) -> bytes:
    return content[: int(rng.integers(0, len(content)))]


def beheaded(rng: Rng, content: bytes) -> bytes:
    return content[int(rng.integers(1, min(200, len(content)))) :]


def grown(rng: Rng, content: bytes) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 5000)))


def blanked(rng: Rng, content: bytes) -> bytes:
    """Replace a range by zeros, like a block that was never written."""
    start = int(rng.integers(0, len(content)))
    stop = min(len(content), start + int(rng.integers(1, 4096)))
    return content[:start] + bytes(stop - start) + content[stop:]


def shuffled(rng: Rng, content: bytes) -> bytes:
    """Shuffle blocks of 512 bytes."""
    blocks = [content[i : i + 512] for i in range(0, len(content), 512)]
    return b"".join(blocks[i] for i in rng.permutation(len(blocks)))


def noise(rng: Rng, content: bytes) -> bytes:
    return rng.bytes(len(content))


def extreme(rng: Rng, content: bytes) -> bytes:
    """Set a 32-bit word of the first hundred bytes to the largest value or zero."""
    position = int(rng.integers(4, max(5, min(100, len(content)) - 4)))
    word = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4))[int(rng.integers(4))]
    return content[:position] + word + content[position + 4 :]


DAMAGE: dict[str, Mutation] = {
    "bits": flipped,
    "bits of the head": head_flipped,
    "words of the head": extreme,
    "cut": cut,
    "beheaded": beheaded,
    "grown": grown,
    "blanked": blanked,
    "shuffled": shuffled,
    "noise": noise,
}

# sound


def wav(
    sound: np.ndarray,
    *,
    rate: int = RATE,
    channels: int = 1,
    tag: int = 1,
    bits: int = 16,
    length: int | None = None,
    align: int | None = None,
) -> bytes:
    """A WAV file with the given header fields and the bytes of ``sound``."""
    data = sound.tobytes()
    align = channels * bits // 8 if align is None else align
    head = struct.pack("<HHIIHH", tag, channels, rate, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits)
    data_length = len(data) if length is None else length
    body = (
        b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", data_length & 0xFFFFFFFF) + data
    )
    return b"RIFF" + struct.pack("<I", min(len(body), 0xFFFFFFFF)) + body


def _pcm(rng: Rng) -> np.ndarray:
    return (speech(rng) * 32767).astype("<i2")


RATES = (0, 1, 2, 7, 100, 999, 3000, 192000, 10**6, 10**9, 2**31 - 1, 2**31, 2**32 - 1)
CHANNELS = (0, 2, 3, 8, 64, 255, 256, 257, 1024, 1025, 65535)
BITS = (0, 1, 7, 8, 12, 24, 32, 64, 65535)
LENGTHS = (0, 1, 3, 10**6, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
TAGS = (0, 2, 3, 6, 7, 17, 49, 85, 0xFFFE, 0xFFFF)


def _with_header_field(name: str, values: tuple[int, ...]) -> Mutation:
    return lambda rng, _: wav(_pcm(rng), **{name: int(rng.choice(values))})


def wrong_header(rng: Rng, _: bytes) -> bytes:
    """Random values in every field of a WAV header."""
    fields = {"rate": RATES, "channels": CHANNELS, "tag": (1, 3, *TAGS), "bits": (16, 32, *BITS), "length": LENGTHS}
    return wav(_pcm(rng), **{name: int(rng.choice(values)) for name, values in fields.items()})


def strange_samples(rng: Rng, _: bytes) -> bytes:
    """Floating-point samples with some extreme or non-finite values."""
    sound = speech(rng).astype("<f4")
    strange = (np.nan, np.inf, -np.inf, 1e38, -3e38, 1e-40, -1e-45, 1e20)
    for position in rng.integers(0, len(sound), size=int(rng.integers(1, 50))):
        sound[position] = rng.choice(strange)
    return wav(sound, tag=3, bits=32)


def scaled_samples(rng: Rng, _: bytes) -> bytes:
    """Floating-point samples that are far too large, or so small that they are denormal."""
    return wav((speech(rng) * 10.0 ** rng.choice([-44, -39, -30, 10, 30, 38.5])).astype("<f4"), tag=3, bits=32)


def double_samples(rng: Rng, _: bytes) -> bytes:
    """Double-precision samples beyond the range of single precision."""
    return wav((speech(rng) * 10.0 ** rng.choice([-300, 40, 300])).astype("<f8"), tag=3, bits=64)


def one_value(rng: Rng, _: bytes) -> bytes:
    """A constant, full scale, an impulse, or silence."""
    sound = np.full(int(rng.choice([1, 2, 100, 5000])), rng.choice([0.0, 1.0, -1.0, 0.5, 1e-5]), "<f4")
    if rng.random() < 0.3:
        sound[1:] = 0
    return wav(sound, tag=3, bits=32)


SOUNDS: dict[str, Mutation] = {
    "rate": _with_header_field("rate", RATES),
    "channels": _with_header_field("channels", CHANNELS),
    "bits": _with_header_field("bits", BITS),
    "length": _with_header_field("length", LENGTHS),
    "coding": _with_header_field("tag", TAGS),
    "block size": _with_header_field("align", (0, 1, 3, 65535)),
    "whole header": wrong_header,
    "NaN and infinities": strange_samples,
    "far too large or small": scaled_samples,
    "doubles": double_samples,
    "one value": one_value,
}


def wrong_flac_header(rng: Rng, content: bytes) -> bytes:
    """A FLAC whose STREAMINFO has another rate, number of channels or length; 2**36 - 1 samples is the longest."""
    head = int.from_bytes(content[18:26], "big")  # rate 20 bits, channels - 1 3, bits - 1 5, samples 36
    rate, channels, bits, total = head >> 44, head >> 41 & 7, head >> 36 & 31, head & (2**36 - 1)
    choice = int(rng.integers(3))
    total = int(rng.choice([0, 1, 2**31, 2**36 - 1])) if choice == 0 else total
    rate = int(rng.choice([0, 1, 50, 655350, 2**20 - 1])) if choice == 1 else rate
    channels = int(rng.integers(8)) if choice == 2 else channels
    return content[:18] + (rate << 44 | channels << 41 | bits << 36 | total).to_bytes(8, "big") + content[26:]


def changed_ogg_page(rng: Rng, content: bytes) -> bytes:
    """An Ogg file with one changed page and a correct checksum: a far position, another serial, or a flipped bit."""
    pages = _ogg_pages(content)
    start, stop = pages[int(rng.integers(len(pages)))]
    page = bytearray(content[start:stop])
    choice = int(rng.integers(4))
    if choice == 0:
        page[6:14] = struct.pack("<q", int(rng.choice([0, -1, -2, 2**40, 2**62, 2**63 - 1])))
    elif choice == 1:
        page[14:18] = rng.bytes(4)
    elif choice == 2:
        page[5] ^= 1 << int(rng.integers(3))
    else:
        page[int(rng.integers(28, len(page)))] ^= 1 << int(rng.integers(8))
    return content[:start] + _ogg_summed(page) + content[stop:]


def _ogg_checksum(page: bytes) -> int:
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    return checksum


# container, coding, suffix -> mutations of that kind of file besides DAMAGE
CONTAINERS: dict[tuple[str, str, str], Mapping[str, Mutation]] = {
    ("WAV", "PCM_16", "wav"): {},
    ("WAV", "FLOAT", "wav"): {},
    ("WAVEX", "PCM_24", "wav"): {},
    ("FLAC", "PCM_16", "flac"): {"header": wrong_flac_header},
    ("OGG", "VORBIS", "ogg"): {"page": changed_ogg_page},
    ("OGG", "OPUS", "opus"): {"page": changed_ogg_page},
    ("MP3", "MPEG_LAYER_III", "mp3"): {},
    ("AIFF", "PCM_16", "aiff"): {},
    ("AU", "PCM_16", "au"): {},
    ("CAF", "PCM_16", "caf"): {},
    ("W64", "PCM_16", "w64"): {},
    ("RF64", "PCM_16", "rf64"): {},
}


def sound_file(rng: Rng, number: int) -> tuple[str, str, bytes]:
    """(kind, name, content) of damaged sound file number ``number``. Every second one has a wrong WAV header."""
    if number % 2:
        kind, mutation = list(SOUNDS.items())[number // 2 % len(SOUNDS)]
        return f"wav, {kind}", "x.wav", mutation(rng, b"")
    (container, coding, suffix), own = list(CONTAINERS.items())[number // 2 % len(CONTAINERS)]
    sound = speech(rng, sample_rate=RATE, channels=int(rng.integers(1, 3)))
    content = encoded(sound, RATE, container, coding)
    kind = str(rng.choice([*DAMAGE, *own, *own, *own]))
    changed = ({**DAMAGE, **own})[kind](rng, content)
    if rng.random() < 0.1:  # with another suffix
        kind, suffix = (
            f"{kind}, wrong suffix",
            str(rng.choice(["wav", "flac", "ogg", "mp3", "raw", "txt", "sd2", "xi"])),
        )
    return f"{coding.lower() if container == 'OGG' else container.lower()}, {kind}", f"x.{suffix}", changed


# files of settings: weights, YAML, manifests


def safetensors_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def safetensors_of(header: Mapping[str, Any] | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def head_length(rng: Rng, content: bytes) -> bytes:
    """A safetensors file with a wrong length of its header."""
    lengths = (0, 1, 7, len(content), 10**8, 2**31, 2**62, 2**64 - 1)
    return struct.pack("<Q", int(lengths[int(rng.integers(len(lengths)))])) + content[8:]


def wrong_tensor(rng: Rng, content: bytes) -> bytes:
    """A tensor with another type, shape, position or name."""
    header, body = safetensors_parts(content)
    name = str(rng.choice([key for key in header if key != "__metadata__"]))
    choice = int(rng.integers(4))
    if choice == 0:
        header[name]["dtype"] = str(rng.choice(["F64", "F16", "I64", "BOOL", "F8_E4M3", "X"]))
    elif choice == 1:
        header[name]["shape"] = [int(rng.choice([0, 1, 2**40, 2**62])), *header[name]["shape"]]
    elif choice == 2:
        header[name]["data_offsets"] = [int(rng.choice([0, 1, 2**40])), int(rng.choice([0, 4, 2**40, 2**62]))]
    else:
        header[f"{name}.more" if rng.random() < 0.5 else "x"] = header.pop(name)
    return safetensors_of(header, body)


def wrong_metadata(rng: Rng, content: bytes) -> bytes:
    """A file of weights with changed, missing or deeply nested settings."""
    header, body = safetensors_parts(content)
    metadata = header["__metadata__"]
    choice = int(rng.integers(6))
    if choice < 3:
        config = json.loads(metadata["config"])
        replace_leaf(rng, config)
        metadata["config"] = json.dumps(config)
    elif choice == 3:
        kinds = ("restorer", "vocoder", "two-stage", "bilstm", "shift", "x", "")
        metadata["kind"] = str(rng.choice(kinds))
    elif choice == 4:
        field = str(rng.choice(["config", "provenance"]))
        nested = "[" * DEEP + "]" * DEEP
        metadata[field] = str(rng.choice(["", "[]", "null", "{", nested, "1" * LONG, '{"mel": 1' + "0" * LONG + "}"]))
    else:
        metadata.pop(str(rng.choice(list(metadata))))
    return safetensors_of(header, body)


def extreme_weights(rng: Rng, content: bytes) -> bytes:
    """Weights that are NaN, infinite or far too large."""
    header, body = safetensors_parts(content)
    changed = np.frombuffer(body, "<f4").copy()
    for position in rng.integers(0, len(changed), size=int(rng.integers(1, 10))):
        changed[position] = rng.choice([np.nan, np.inf, 1e38, -1e30, 1e-45])
    return safetensors_of(header, changed.tobytes())


WEIGHTS: dict[str, Mutation] = {
    "head's length": head_length,
    "tensor": wrong_tensor,
    "settings": wrong_metadata,
    "settings, again": wrong_metadata,
    "weights": extreme_weights,
    **DAMAGE,
}


def replace_leaf(rng: Rng, values: Any) -> None:
    """Replace one value or key somewhere in nested dicts and lists."""
    places = list(_places(values))
    container, key = places[int(rng.integers(len(places)))]
    if isinstance(container, dict) and rng.random() < 0.1:
        container[f"{key}x"] = container.pop(key)
        return
    value = container[key]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        container[key] = type(value)(value * float(rng.choice([0, -1, 2, 1000, 1e6, 1e9])))
    else:
        container[key] = VALUES[int(rng.integers(len(VALUES)))]


def _places(values: Any) -> Any:
    for key in values if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _places(values[key])


def changed_line(rng: Rng, content: bytes) -> bytes:
    """Delete, repeat or move a line, or replace its value."""
    lines = content.split(b"\n")
    index = int(rng.integers(len(lines)))
    choice = int(rng.integers(4))
    if choice == 0:
        del lines[index]
    elif choice == 1:
        lines.insert(index, lines[index])
    elif choice == 2:
        lines.insert(int(rng.integers(len(lines))), lines.pop(index))
    else:
        value = json.dumps(VALUES[int(rng.integers(len(VALUES)))]).encode()
        lines[index] = lines[index].partition(b":")[0] + b": " + value
    return b"\n".join(lines)


def odd_text(rng: Rng, content: bytes) -> bytes:
    """Insert characters that are unusual in text, or bytes that are no text."""
    odd = (
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\t",
        b"\r",
        b"\xed\xa0\x80",
        "\u2028".encode(),
        b'"',
        b"'",
        b"{",
        b"&a",
    )
    position = int(rng.integers(len(content) + 1))
    return content[:position] + odd[int(rng.integers(len(odd)))] + content[position:]


BOMB = "a: &a [0,0,0,0,0,0,0,0,0,0]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE_YAML = (
    BOMB + "steps: *i\n",
    BOMB + "frequencies: *i\n",
    "x: " + "[" * 20_000 + "]" * 20_000,
    "x: &x [*x]\nsteps: *x\n",
    "steps: !!python/object/apply:os.mkdir [marker]\n",
    "!!python/object/apply:os.mkdir [marker]\n",
    "!!python/object/new:os.mkdir [marker]\n",
    "run_dir: ${oc.env:HOME}\nsteps: ${steps}\n",
    "run_dir: ${run_dir}${run_dir}\n",
    "steps: 1" + "0" * LONG + "\n",
    "steps: 1e999999999\n",
    "cutoff: 1e999999999\n",
    "cutoff: 1" + "0" * LONG + "\n",
    "? [a, b]\n: c\n",
    "? {a: b}\n: c\n",
    "steps: 2026-01-01\n",
    "a: 1\n---\nb: 2\n",
    "%YAML 9.9\n---\na: 1\n",
    "null\n",
    "5\n",
    "",
    "- 1\n",
    "<<: [*x]\n",
    'data: {train: ["a\\0b"]}\n',
    "0: 1\ntrue: 2\nnull: 3\n",
)


def hostile_yaml(rng: Rng, _: bytes) -> bytes:
    return str(rng.choice(np.array(HOSTILE_YAML, dtype=object))).encode()


YAMLS: dict[str, Mutation] = {
    "line": changed_line,
    "line, again": changed_line,
    "characters": odd_text,
    "hostile": hostile_yaml,
    "hostile, again": hostile_yaml,
    "bits": flipped,
    "cut": cut,
    "noise": noise,
}


def manifest_value(rng: Rng, content: bytes) -> bytes:
    """A JSONL file with one value or key replaced."""
    lines = [json.loads(line) for line in content.splitlines()]
    replace_leaf(rng, lines[int(rng.integers(len(lines)))])
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def hostile_manifest(rng: Rng, content: bytes) -> bytes:
    """Insert a line that is difficult for parsers."""
    hostile = (
        "[" * DEEP,
        "1" * LONG,
        '{"clean": "a.wav", "seconds": 1' + "0" * LONG + "}",
        '{"clean": "' + "a" * 300_000 + '.wav", "degraded": null, "speaker": "s", "seconds": 1}',
        '{"clean": "a\\u0000.wav", "degraded": null, "speaker": "s", "seconds": 1}',
        '{"clean": "\\ud800.wav", "degraded": null, "speaker": "\\ud800", "seconds": 1}',
        '{"clean": "/dev/zero", "degraded": null, "speaker": "s", "seconds": 1}',
        '{"clean": ".", "degraded": "..", "speaker": "s", "seconds": 1e300}',
        '{"clean": "0.wav", "degraded": "0.wav", "speaker": "s", "seconds": 1, "delay": 1e30}',
        '{"clean": "0.wav", "degraded": "0.wav", "speaker": "s", "seconds": 1, "delay": -1e9}',
        '{"clean": "0.wav", "degraded": null, "speaker": "s", "seconds": 1e-300}',
        '{"clean": "0.wav", "degraded": null, "speaker": 5, "seconds": "1"}',
        "null",
        '"x"',
        "{}",
    )
    lines = content.decode().splitlines()
    lines.insert(int(rng.integers(len(lines) + 1)), str(rng.choice(np.array(hostile, dtype=object))))
    return "\n".join(lines).encode()


def hostile_csv(rng: Rng, content: bytes) -> bytes:
    hostile = (
        '"' + "x" * 200_000,
        "x" * 200_000 + ".wav,s,1",
        "a\x00b.wav,s,1",
        "0.wav,s,1,2,3,4,5",
        "0.wav",
        '0.wav,"s\n\n',
        "0.wav,s,nan",
        "0.wav,s,1e999",
        "0.wav,s," + "1" * LONG,
        ",,",
        "/dev/zero,s,",
        "..,s,",
    )
    lines = content.decode().splitlines()
    lines.insert(int(rng.integers(len(lines) + 1)), str(rng.choice(np.array(hostile, dtype=object))))
    return "\n".join(lines).encode()


JSONLS: dict[str, Mutation] = {
    "value": manifest_value,
    "hostile": hostile_manifest,
    "hostile, again": hostile_manifest,
    "characters": odd_text,
    "bits": flipped,
    "cut": cut,
}
CSVS: dict[str, Mutation] = {
    "hostile": hostile_csv,
    "hostile, again": hostile_csv,
    "characters": odd_text,
    "bits": flipped,
    "cut": cut,
    "noise": noise,
}


def json_value(rng: Rng, content: bytes) -> bytes:
    values = json.loads(content)
    replace_leaf(rng, values)
    return json.dumps(values).encode()


JSONS: dict[str, Mutation] = {"value": json_value, "characters": odd_text, "bits": flipped, "cut": cut}


def mutated(rng: Rng, mutations: Mapping[str, Mutation], content: bytes, number: int) -> tuple[str, bytes]:
    """(kind, content) of mutation number ``number`` of a file; a mutation that changes nothing is repeated."""
    kind, mutation = list(mutations.items())[number % len(mutations)]
    for _ in range(100):
        changed = mutation(rng, content)
        if changed != content:
            break
    return kind.removesuffix(", again"), changed
