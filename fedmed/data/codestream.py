"""Size that a compressed frame states for itself, read without decoding it.

The JPEG decoders allocate what the codestream asks for, whatever the DICOM header says; a frame of
a hundred bytes can ask for gigabytes. So its own figures are held against the header first.
"""

from __future__ import annotations

from struct import unpack_from

# ITU-T T.81 table B.1: start of frame 0..15 without DHT (C4), JPG (C8) and DAC (CC);
# ITU-T T.87: start of frame 55 (F7) of JPEG-LS.
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})

# ITU-T T.800 annex A: SOC followed at once by SIZ.
_JPEG2000_START = b"\xff\x4f\xff\x51"


def codestream_size(frame: bytes) -> tuple[int, int, int] | None:
    """Height, width and components that a JPEG, JPEG-LS or JPEG 2000 frame states.

    Args:
        frame: one encoded frame; a JPEG 2000 codestream may stand inside a JP2 file.

    Returns:
        (height, width, components), or None where the bytes are none of these formats.
    """
    if frame[:2] == b"\xff\xd8":
        return _jpeg_size(frame)
    start = frame.find(_JPEG2000_START, 0, 4096)
    return _jpeg2000_size(frame, start) if start >= 0 else None


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    offset = 2
    while offset + 10 <= len(frame):
        if frame[offset] != 0xFF:
            return None
        marker = frame[offset + 1]
        if marker == 0xFF:  # fill byte
            offset += 1
        elif marker in _WITHOUT_LENGTH:
            offset += 2
        elif marker in _START_OF_FRAME:
            height, width, components = unpack_from(">HHB", frame, offset + 5)
            return height, width, components
        else:
            offset += 2 + int(unpack_from(">H", frame, offset + 2)[0])
    return None


def _jpeg2000_size(frame: bytes, start: int) -> tuple[int, int, int] | None:
    # SIZ: marker, length, capabilities, then Xsiz Ysiz XOsiz YOsiz, tile size and offset, Csiz.
    if len(frame) < start + 42:
        return None
    x_end, y_end, x_start, y_start = unpack_from(">4I", frame, start + 8)
    components = unpack_from(">H", frame, start + 40)[0]
    return y_end - y_start, x_end - x_start, components
