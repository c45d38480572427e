"""Damaged and hostile files, a function of a generator: what the parts of tests/run_torture.py feed to the commands.

Every function takes bytes that are sound, or nothing, and gives bytes that need not be. A mutation is a name and a
function of (rng, bytes); a table of them by kind of file is at the end of each section.
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
DEEP = 100_000  # levels of nesting, beyond what recursive parsers take
LONG = 10_000  # digits, more than Python turns into a number
# what a number in a file may have become
VALUES: tuple[Any, ...] = (0, -1, 1, 3, 10**6, 10**9, 2**31, 2**63, 10**30, -(2**63), 0.5, 1e308, -1e-308, True, None)
VALUES += ("", "x", "0", [], {}, [[]], [1] * 1000, {"a": 1}, float("nan"), float("inf"), float("-inf"))


def speech(rng: Rng, seconds: float = 0.3, sample_rate: int = RATE, channels: int = 1) -> np.ndarray:
    """Sound of a voice's kind, (T, C) float32, about -20 dBFS."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    pitch = rng.uniform(90, 220, channels)
    harmonics = [np.sin(2 * np.pi * np.outer(time, k * pitch)) / k for k in range(1, 8)]
    voice = np.sum(harmonics, axis=0)
    return (0.1 * voice + 1e-3 * rng.standard_normal(voice.shape)).astype(np.float32)


def encoded(sound: np.ndarray, sample_rate: int, container: str, coding: str) -> bytes:
    """(T, C) samples as the bytes of a file, the same whenever it is made."""
    file = io.BytesIO()
    soundfile.write(file, sound, sample_rate, format=container, subtype=coding)
    content = bytearray(file.getvalue())
    if (peak := content.find(b"PEAK")) >= 0:
        content[peak + 12 : peak + 16] = bytes(4)  # the time of day
    for start, stop in _ogg_pages(content) if container == "OGG" else ():
        content[start + 14 : start + 18] = b"torn"  # a serial number, at random otherwise
        content[start:stop] = _ogg_summed(content[start:stop])
    return bytes(content)


def _ogg_pages(content: bytes | bytearray) -> list[tuple[int, int]]:
    """Where each page begins and ends."""
    starts = [i for i in range(len(content) - 27) if content[i : i + 4] == b"OggS"]
    return list(zip(starts, [*starts[1:], len(content)], strict=True))


def _ogg_summed(page: bytes | bytearray) -> bytes:
    """A page with the checksum that it should have."""
    zeroed = bytes(page[:22]) + bytes(4) + bytes(page[26:])
    return zeroed[:22] + struct.pack("<I", _ogg_checksum(zeroed)) + zeroed[26:]


# what any file can suffer


def flipped(rng: Rng, content: bytes) -> bytes:
    """Some bits, anywhere, turned."""
    return _flipped(rng, content, len(content))


def head_flipped(rng: Rng, content: bytes) -> bytes:
    """Some bits of the first hundred bytes, where headers are, turned."""
    return _flipped(rng, content, min(100, len(content)))


def _flipped(rng: Rng, content: bytes, end: int) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(0, end, size=int(rng.integers(1, 12))):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(rng: Rng, content: bytes) -> bytes:
    return content[: int(rng.integers(0, len(content)))]


def beheaded(rng: Rng, content: bytes) -> bytes:
    return content[int(rng.integers(1, min(200, len(content)))) :]


def grown(rng: Rng, content: bytes) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 5000)))


def blanked(rng: Rng, content: bytes) -> bytes:
    """A stretch of zeros, as of a block that was never written."""
    start = int(rng.integers(0, len(content)))
    stop = min(len(content), start + int(rng.integers(1, 4096)))
    return content[:start] + bytes(stop - start) + content[stop:]


def shuffled(rng: Rng, content: bytes) -> bytes:
    """Blocks of 512 bytes in another order."""
    blocks = [content[i : i + 512] for i in range(0, len(content), 512)]
    return b"".join(blocks[i] for i in rng.permutation(len(blocks)))


def noise(rng: Rng, content: bytes) -> bytes:
    return rng.bytes(len(content))


def extreme(rng: Rng, content: bytes) -> bytes:
    """A 32-bit word of the first hundred bytes made the largest, or zero."""
    place = int(rng.integers(4, max(5, min(100, len(content)) - 4)))
    word = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4))[int(rng.integers(4))]
    return content[:place] + word + content[place + 4 :]


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
    """A WAV file whose header says what it is told to, over the bytes of ``sound``."""
    data = sound.tobytes()
    align = channels * bits // 8 if align is None else align
    head = struct.pack("<HHIIHH", tag, channels, rate, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits)
    said = len(data) if length is None else length
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", said & 0xFFFFFFFF) + data
    return b"RIFF" + struct.pack("<I", min(len(body), 0xFFFFFFFF)) + body


def _pcm(rng: Rng) -> np.ndarray:
    return (speech(rng) * 32767).astype("<i2")


RATES = (0, 1, 2, 7, 100, 999, 3000, 192000, 10**6, 10**9, 2**31 - 1, 2**31, 2**32 - 1)
CHANNELS = (0, 2, 3, 8, 64, 255, 256, 257, 1024, 1025, 65535)
BITS = (0, 1, 7, 8, 12, 24, 32, 64, 65535)
LENGTHS = (0, 1, 3, 10**6, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
TAGS = (0, 2, 3, 6, 7, 17, 49, 85, 0xFFFE, 0xFFFF)


def _said(name: str, values: tuple[int, ...]) -> Mutation:
    return lambda rng, _: wav(_pcm(rng), **{name: int(rng.choice(values))})


def all_lies(rng: Rng, _: bytes) -> bytes:
    """Every field of a WAV header at once."""
    fields = {"rate": RATES, "channels": CHANNELS, "tag": (1, 3, *TAGS), "bits": (16, 32, *BITS), "length": LENGTHS}
    return wav(_pcm(rng), **{name: int(rng.choice(values)) for name, values in fields.items()})


def strange_samples(rng: Rng, _: bytes) -> bytes:
    """Float samples among which are some that are no sound."""
    sound = speech(rng).astype("<f4")
    strange = (np.nan, np.inf, -np.inf, 1e38, -3e38, 1e-40, -1e-45, 1e20)
    for place in rng.integers(0, len(sound), size=int(rng.integers(1, 50))):
        sound[place] = rng.choice(strange)
    return wav(sound, tag=3, bits=32)


def scaled_samples(rng: Rng, _: bytes) -> bytes:
    """Float samples all of which are far too large, or so small that they are denormal."""
    return wav((speech(rng) * 10.0 ** rng.choice([-44, -39, -30, 10, 30, 38.5])).astype("<f4"), tag=3, bits=32)


def double_samples(rng: Rng, _: bytes) -> bytes:
    """Doubles that no float can hold."""
    return wav((speech(rng) * 10.0 ** rng.choice([-300, 40, 300])).astype("<f8"), tag=3, bits=64)


def one_value(rng: Rng, _: bytes) -> bytes:
    """Nothing but one value: a constant, full scale, an impulse, silence."""
    sound = np.full(int(rng.choice([1, 2, 100, 5000])), rng.choice([0.0, 1.0, -1.0, 0.5, 1e-5]), "<f4")
    if rng.random() < 0.3:
        sound[1:] = 0
    return wav(sound, tag=3, bits=32)


SOUNDS: dict[str, Mutation] = {
    "rate": _said("rate", RATES),
    "channels": _said("channels", CHANNELS),
    "bits": _said("bits", BITS),
    "length": _said("length", LENGTHS),
    "coding": _said("tag", TAGS),
    "block size": _said("align", (0, 1, 3, 65535)),
    "whole header": all_lies,
    "NaN and infinities": strange_samples,
    "far too large or small": scaled_samples,
    "doubles": double_samples,
    "one value": one_value,
}


def flac_lies(rng: Rng, content: bytes) -> bytes:
    """A FLAC whose STREAMINFO has another rate, number of channels or length; 2**36 - 1 samples is the longest."""
    head = int.from_bytes(content[18:26], "big")  # rate 20 bits, channels - 1 3, bits - 1 5, samples 36
    rate, channels, bits, total = head >> 44, head >> 41 & 7, head >> 36 & 31, head & (2**36 - 1)
    which = int(rng.integers(3))
    total = int(rng.choice([0, 1, 2**31, 2**36 - 1])) if which == 0 else total
    rate = int(rng.choice([0, 1, 50, 655350, 2**20 - 1])) if which == 1 else rate
    channels = int(rng.integers(8)) if which == 2 else channels
    return content[:18] + (rate << 44 | channels << 41 | bits << 36 | total).to_bytes(8, "big") + content[26:]


def ogg_lies(rng: Rng, content: bytes) -> bytes:
    """An Ogg with one page changed and its checksum right: a position far away, another serial, a turned bit."""
    pages = _ogg_pages(content)
    start, stop = pages[int(rng.integers(len(pages)))]
    page = bytearray(content[start:stop])
    which = int(rng.integers(4))
    if which == 0:
        page[6:14] = struct.pack("<q", int(rng.choice([0, -1, -2, 2**40, 2**62, 2**63 - 1])))
    elif which == 1:
        page[14:18] = rng.bytes(4)
    elif which == 2:
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


# container, coding, suffix -> what damages files of that kind besides DAMAGE
CONTAINERS: dict[tuple[str, str, str], Mapping[str, Mutation]] = {
    ("WAV", "PCM_16", "wav"): {},
    ("WAV", "FLOAT", "wav"): {},
    ("WAVEX", "PCM_24", "wav"): {},
    ("FLAC", "PCM_16", "flac"): {"header": flac_lies},
    ("OGG", "VORBIS", "ogg"): {"page": ogg_lies},
    ("OGG", "OPUS", "opus"): {"page": ogg_lies},
    ("MP3", "MPEG_LAYER_III", "mp3"): {},
    ("AIFF", "PCM_16", "aiff"): {},
    ("AU", "PCM_16", "au"): {},
    ("CAF", "PCM_16", "caf"): {},
    ("W64", "PCM_16", "w64"): {},
    ("RF64", "PCM_16", "rf64"): {},
}


def sound_file(rng: Rng, number: int) -> tuple[str, str, bytes]:
    """Number ``number`` of the damaged sound files: kind, name, content. Every second one has a header that lies."""
    if number % 2:
        kind, mutation = list(SOUNDS.items())[number // 2 % len(SOUNDS)]
        return f"wav, {kind}", "x.wav", mutation(rng, b"")
    (container, coding, suffix), own = list(CONTAINERS.items())[number // 2 % len(CONTAINERS)]
    sound = speech(rng, sample_rate=RATE, channels=int(rng.integers(1, 3)))
    content = encoded(sound, RATE, container, coding)
    kind = str(rng.choice([*DAMAGE, *own, *own, *own]))
    changed = ({**DAMAGE, **own})[kind](rng, content)
    if rng.random() < 0.1:  # the name says something else
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
    """A safetensors file that says its header is of another length."""
    lengths = (0, 1, 7, len(content), 10**8, 2**31, 2**62, 2**64 - 1)
    return struct.pack("<Q", int(lengths[int(rng.integers(len(lengths)))])) + content[8:]


def tensor_lies(rng: Rng, content: bytes) -> bytes:
    """A tensor of another type, shape or place."""
    header, body = safetensors_parts(content)
    name = str(rng.choice([key for key in header if key != "__metadata__"]))
    which = int(rng.integers(4))
    if which == 0:
        header[name]["dtype"] = str(rng.choice(["F64", "F16", "I64", "BOOL", "F8_E4M3", "X"]))
    elif which == 1:
        header[name]["shape"] = [int(rng.choice([0, 1, 2**40, 2**62])), *header[name]["shape"]]
    elif which == 2:
        header[name]["data_offsets"] = [int(rng.choice([0, 1, 2**40])), int(rng.choice([0, 4, 2**40, 2**62]))]
    else:
        header[f"{name}.more" if rng.random() < 0.5 else "x"] = header.pop(name)
    return safetensors_of(header, body)


def metadata_lies(rng: Rng, content: bytes) -> bytes:
    """Settings inside a file of weights of other values, kinds or depth."""
    header, body = safetensors_parts(content)
    metadata = header["__metadata__"]
    which = int(rng.integers(6))
    if which < 3:
        config = json.loads(metadata["config"])
        replace_leaf(rng, config)
        metadata["config"] = json.dumps(config)
    elif which == 3:
        kinds = ("restorer", "vocoder", "two-stage", "bilstm", "shift", "x", "")
        metadata["kind"] = str(rng.choice(kinds))
    elif which == 4:
        field = str(rng.choice(["config", "provenance"]))
        nested = "[" * DEEP + "]" * DEEP
        metadata[field] = str(rng.choice(["", "[]", "null", "{", nested, "1" * LONG, '{"mel": 1' + "0" * LONG + "}"]))
    else:
        metadata.pop(str(rng.choice(list(metadata))))
    return safetensors_of(header, body)


def weight_lies(rng: Rng, content: bytes) -> bytes:
    """Weights that are NaN, infinite, or far too large."""
    header, body = safetensors_parts(content)
    changed = np.frombuffer(body, "<f4").copy()
    for place in rng.integers(0, len(changed), size=int(rng.integers(1, 10))):
        changed[place] = rng.choice([np.nan, np.inf, 1e38, -1e30, 1e-45])
    return safetensors_of(header, changed.tobytes())


WEIGHTS: dict[str, Mutation] = {
    "head's length": head_length,
    "tensor": tensor_lies,
    "settings": metadata_lies,
    "settings, again": metadata_lies,
    "weights": weight_lies,
    **DAMAGE,
}


def replace_leaf(rng: Rng, values: Any) -> None:
    """One value somewhere in nested dicts and lists becomes another, or a key does."""
    places = list(_places(values))
    inside, key = places[int(rng.integers(len(places)))]
    if isinstance(inside, dict) and rng.random() < 0.1:
        inside[f"{key}x"] = inside.pop(key)
        return
    now = inside[key]
    if isinstance(now, int | float) and not isinstance(now, bool) and rng.random() < 0.5:
        inside[key] = type(now)(now * float(rng.choice([0, -1, 2, 1000, 1e6, 1e9])))
    else:
        inside[key] = VALUES[int(rng.integers(len(VALUES)))]


def _places(values: Any) -> Any:
    for key in values if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _places(values[key])


def changed_line(rng: Rng, content: bytes) -> bytes:
    """A line lost, doubled, moved, or its value replaced."""
    lines = content.split(b"\n")
    place = int(rng.integers(len(lines)))
    which = int(rng.integers(4))
    if which == 0:
        del lines[place]
    elif which == 1:
        lines.insert(place, lines[place])
    elif which == 2:
        lines.insert(int(rng.integers(len(lines))), lines.pop(place))
    else:
        value = json.dumps(VALUES[int(rng.integers(len(VALUES)))]).encode()
        lines[place] = lines[place].partition(b":")[0] + b": " + value
    return b"\n".join(lines)


def odd_text(rng: Rng, content: bytes) -> bytes:
    """Characters that text should not have, or bytes that are no text."""
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
    place = int(rng.integers(len(content) + 1))
    return content[:place] + odd[int(rng.integers(len(odd)))] + content[place:]


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
    """A JSONL with one value replaced, a key lost or too many."""
    lines = [json.loads(line) for line in content.splitlines()]
    replace_leaf(rng, lines[int(rng.integers(len(lines)))])
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def hostile_manifest(rng: Rng, content: bytes) -> bytes:
    """Lines, put among good ones, that parsers stumble over."""
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
    """Kind and content of number ``number`` of the mutations of a file; a mutation that changes nothing is repeated."""
    kind, mutation = list(mutations.items())[number % len(mutations)]
    for _ in range(100):
        changed = mutation(rng, content)
        if changed != content:
            break
    return kind.removesuffix(", again"), changed
