"""Recognizes the type of a file by its first bytes, so that a pipe does not play it as raw samples."""

ENOUGH = 4096  # bytes that suffice to recognize every format: they include two frames of MP3

STARTS = {  # offset and bytes at that offset -> name
    (0, b"RIFF"): "WAV",
    (0, b"RIFX"): "WAV",
    (0, b"RF64"): "RF64",
    (0, b"BW64"): "BW64",
    (0, b"riff\x2e\x91\xcf\x11"): "W64",
    (0, b"FORM"): "AIFF",
    (0, b"fLaC"): "FLAC",
    (0, b"OggS"): "Ogg",
    (0, b"caff"): "CAF",
    (0, b".snd"): "AU",
    (0, b"dns."): "AU",
    (4, b"ftyp"): "MP4",
    (0, b"\x1aE\xdf\xa3"): "WebM or Matroska",
    (0, b"#!AMR"): "AMR",
    (0, b"NIST_1A"): "SPHERE",
    (0, b"Creative Voice File"): "VOC",
    (0, b"wvpk"): "WavPack",
    (0, b"MAC "): "APE",
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"): "WMA",
}
# MPEG audio (ISO 11172-3, 13818-3): kbit/s by index of layers I, II and III of version 1, then of I and of II or III of
# versions 2 and 2.5; rates in Hz of version 1
KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44100, 48000, 32000)


def container_of(head: bytes) -> str | None:
    """The common name of the file format that begins with ``head``; None if it is not recognized.

    >>> container_of(b"fLaC" + bytes(40)), container_of(bytes(40))
    ('FLAC', None)
    """
    for (offset, start), name in STARTS.items():
        if head[offset : offset + len(start)] == start:
            return name
    if _has_id3(head):
        return "MP3"
    return _framed(head)


def undecided(head: bytes) -> bool:
    """Whether more bytes, up to ``ENOUGH``, might identify the format that begins with ``head``."""
    if len(head) >= ENOUGH or container_of(head):
        return False
    starts = [(offset, start) for offset, start in STARTS if len(head) < offset + len(start)]
    if any(head[offset:] == start[: max(0, len(head) - offset)] for offset, start in starts):
        return True
    return len(head) < 10 or _length(head) > 0


def _has_id3(head: bytes) -> bool:
    """Whether an ID3v2 tag begins here: a known version, and a size in bytes of seven bits."""
    return head[:3] == b"ID3" and len(head) >= 10 and head[3] in (2, 3, 4) and max(head[6:10]) < 128


def _framed(head: bytes) -> str | None:
    """MP3 or AAC without a file header: two consecutive frames of the same kind."""
    first = _length(head)
    second = head[first:]
    if not first or _length(second) == 0:
        return None
    # sync word, version, layer and sample rate are the same in all frames
    same_kind = all((a ^ b) & mask == 0 for a, b, mask in zip(head, second, (0xFF, 0xFE, 0x0C), strict=False))
    return ("AAC" if head[1] & 0xF6 == 0xF0 else "MP3") if same_kind else None


def _length(head: bytes) -> int:
    """Length in bytes of the MPEG audio or AAC (ADTS) frame that begins here; 0 if there is none."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    if head[1] & 0xF6 == 0xF0:  # the layer value that MPEG audio does not use means AAC
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        return length if length > 7 and head[2] >> 2 & 15 < 13 else 0
    version, layer = {3: 1.0, 2: 2.0, 0: 2.5}.get(head[1] >> 3 & 3), 4 - (head[1] >> 1 & 3)
    kbit, rate = head[2] >> 4, head[2] >> 2 & 3
    if version is None or layer == 4 or kbit in (0, 15) or rate == 3:
        return 0
    bits = 1000 * KBITS[(1, layer) if version == 1 else (2, min(layer, 2))][kbit - 1]
    hertz = RATES[rate] // {1.0: 1, 2.0: 2, 2.5: 4}[version]
    padding = head[2] >> 1 & 1
    if layer == 1:
        return (12 * bits // hertz + padding) * 4
    return (72 if layer == 3 and version != 1 else 144) * bits // hertz + padding
