"""Why an image is not used: the closed set of reasons, the limits, and the border to decoders.

Whatever a decoder raises on one bad file becomes an :class:`~fedmed.errors.ImageError` with one
of these reasons, so that a single file never stops a run. The text of the decoder's own
exception, warnings and log lines is dropped: it may quote the header, hence the patient.
"""

from __future__ import annotations

import logging
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import pydicom.config  # noqa: F401  it sets the level of its logger when it is imported

from fedmed.errors import ImageError


class QuarantineReason(StrEnum):
    """Every reason for which an image or a manifest row is set aside; counted in the reports."""

    # The file and its place.
    MISSING = "missing"  # the file does not exist
    OUTSIDE_ROOT = "outside-root"  # the path leaves the site's data folder
    NOT_AN_IMAGE = "not-an-image"  # the content is none of the formats that are read
    UNREADABLE = "unreadable"  # one of the formats, but damaged, truncated or not valid
    UNSUPPORTED_SYNTAX = "unsupported-syntax"  # transfer syntax or colour space without a decoder
    # The picture.
    NO_PIXELS = "no-pixels"  # a DICOM object without pixel data: report, plan, directory
    TOO_LARGE = "too-large"  # claims more than DecodeLimits allow
    TOO_SMALL = "too-small"  # a side below DecodeLimits.min_side
    CONSTANT = "constant"  # one value everywhere, no contrast
    NOT_FINITE = "not-finite"  # NaN or infinity among the values
    BAD_FRAME = "bad-frame"  # no such frame, or a frame cell that is not a whole number >= 0
    BAD_MASK = "bad-mask"  # not a mask of class indices 0..255
    # The manifest row.
    BAD_ROW = "bad-row"  # another number of cells than the header
    NO_IMAGE = "no-image"  # empty image cell
    NO_PATIENT = "no-patient"  # empty patient_id cell: the image could not be protected
    BAD_BOXES = "bad-boxes"
    BAD_CONSENT = "bad-consent"
    BAD_SPLIT = "bad-split"
    DUPLICATE = "duplicate"  # the same image and frame as an earlier row


@dataclass(frozen=True)
class DecodeLimits:
    """What a file may ask for; checked against its header before anything is allocated.

    Attributes:
        max_side: largest height or width, in pixels.
        min_side: smallest height or width, in pixels.
        max_bytes: largest size of the one decoded frame as float32, of an inflated data set,
            and of a frame as stored.
        max_stored_bytes: largest size of all frames together as the header states it. Only one
            frame is decoded, so this is a check of plausibility, not of memory.
    """

    max_side: int = 16_384
    min_side: int = 8
    max_bytes: int = 512 * 2**20
    max_stored_bytes: int = 16 * 2**30

    def check(
        self, height: int, width: int, *, channels: int, frames: int = 1, itemsize: int = 1
    ) -> None:
        """Refuse an image by the figures in its header.

        Args:
            height: rows, in pixels.
            width: columns, in pixels.
            channels: samples per pixel, stored or wanted, whichever is larger.
            frames: number of frames in the file.
            itemsize: bytes of one stored sample.

        Raises:
            ImageError: ``too-large`` or ``too-small``.
        """
        stored = height * width * channels * frames * itemsize
        decoded = height * width * channels * max(4, itemsize)
        if max(height, width) > self.max_side or decoded > self.max_bytes:
            raise ImageError(
                QuarantineReason.TOO_LARGE,
                f"{width} x {height} pixels are more than the {self.max_side} a side or the "
                f"{self.max_bytes // 2**20} MiB a decoded frame may have",
            )
        if stored > self.max_stored_bytes:
            raise ImageError(
                QuarantineReason.TOO_LARGE,
                f"{frames} frames of {width} x {height} pixels are more than the "
                f"{self.max_stored_bytes // 2**30} GiB a file may hold",
            )
        if min(height, width) < self.min_side:
            raise ImageError(
                QuarantineReason.TOO_SMALL,
                f"{width} x {height} pixels; at least {self.min_side} a side are needed",
            )


DEFAULT_LIMITS = DecodeLimits()


def choose_frame(frame: int | None, frames: int) -> int:
    """Index (0-based) of the frame to read: the wanted one, or the central one of ``frames``.

    Raises:
        ImageError: ``bad-frame``, there is no such frame.
    """
    if frame is None:
        return frames // 2
    if not 0 <= frame < frames:
        raise ImageError(
            QuarantineReason.BAD_FRAME,
            f"frame {frame} is asked for, the file has {frames} (counted from 0)",
        )
    return frame


def display_name(path: Path, root: Path | None = None) -> str:
    """Name of a file for messages: relative to ``root``, else the bare file name."""
    if root is not None and path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return path.name


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe or a device, which could block for ever, is refused.

    Raises:
        ImageError: ``not-an-image``.
        OSError: as from ``open``.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ImageError(QuarantineReason.NOT_AN_IMAGE, "is not a regular file")
    return path.open("rb")


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Run a decoder: silence it and turn whatever it raises into an ``ImageError``.

    An ``ImageError`` raised inside keeps its reason and gets ``name`` in front of its message.

    Args:
        name: the file's name for messages, see :func:`display_name`.

    Raises:
        ImageError: anything that went wrong; the message names the kind of the exception only.
    """
    try:
        with _silenced_decoders():
            yield
    except ImageError as error:
        raise ImageError(error.reason, f"{name}: {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(QuarantineReason.MISSING, f"{name}: the file does not exist") from None
    except MemoryError:
        raise ImageError(
            QuarantineReason.TOO_LARGE, f"{name}: does not fit into the memory"
        ) from None
    except NotImplementedError:
        raise ImageError(
            QuarantineReason.UNSUPPORTED_SYNTAX,
            f"{name}: no decoder for this way of storing pixels; export the image uncompressed",
        ) from None
    except Exception as error:
        # From None: the original exception may quote the header.
        raise ImageError(
            QuarantineReason.UNREADABLE,
            f"{name}: damaged or not valid, decoding stopped with {type(error).__name__}; "
            "fetch the image again from its source",
        ) from None


class _SilencedWarnings:
    """Ignores the decoders' warnings while at least one thread decodes.

    ``warnings.catch_warnings`` swaps a list that all threads share: nested in two threads it
    could restore the wrong one. Hence one swap for the first to enter and the last to leave.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._catcher = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._catcher = warnings.catch_warnings()
                self._catcher.__enter__()
                warnings.filterwarnings(
                    "ignore", module=r"(pydicom|PIL|pylibjpeg|openjpeg|libjpeg)\b"
                )
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._catcher.__exit__(None, None, None)


def _stop_logging(*packages: str) -> None:
    """Switch the decoders' loggers off for good: they quote headers at every level."""
    for package in packages:
        logging.getLogger(package).setLevel(logging.CRITICAL + 1)


_silenced_warnings = _SilencedWarnings()
_stop_logging("pydicom", "PIL", "pylibjpeg", "libjpeg", "openjpeg")


@contextmanager
def _silenced_decoders() -> Iterator[None]:
    with _silenced_warnings:
        yield
