"""One row of the manifest, parsed and checked: a record, or the reason why it is not used.

No message quotes a cell: in a file whose columns have slipped any cell may hold a patient's name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedmed.data.quarantine import QuarantineReason

CONSENTS = ("yes", "no", "withdrawn")
SPLITS = ("train", "val", "test")
KNOWN_COLUMNS = (
    "image",
    "patient_id",
    "label",
    "mask",
    "boxes",
    "consent",
    "split",
    "frame",
    "sex",
    "age",
)
_ATTRIBUTE_COLUMNS = ("sex", "age")


@dataclass(frozen=True)
class Box:
    """A finding's bounding box, in pixels of the stored image.

    Attributes:
        x0: left edge, inside.
        y0: upper edge, inside.
        x1: right edge, outside (half-open).
        y1: lower edge, outside.
        label: class name as the site writes it.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    label: str


@dataclass(frozen=True)
class ImageRecord:
    """One usable row of the manifest; the patient's fields stay out of its ``repr``.

    Attributes:
        row: row number as a spreadsheet shows it; the header is row 1.
        image: path of the image, under the manifest's root.
        patient_id: groups images; empty where the manifest has no such column.
        labels: class names, possibly none.
        mask: path of the mask, if there is one.
        boxes: findings, possibly none.
        attributes: every other column, among them ``sex`` and ``age``.
        consent: ``yes``, ``no``, ``withdrawn``; None where the manifest has no such column.
        split: ``train``, ``val``, ``test``, or None where the site leaves it to the seed.
        frame: index from 0 in a multi-frame file, None for the central frame.
    """

    row: int
    image: Path
    patient_id: str = field(repr=False)
    labels: tuple[str, ...]
    mask: Path | None
    boxes: tuple[Box, ...]
    attributes: Mapping[str, str] = field(repr=False)
    consent: str | None
    split: str | None
    frame: int | None


@dataclass(frozen=True)
class QuarantinedRow:
    """A row that is not used: its number, the reason, and what to do; no cell is quoted."""

    row: int
    reason: QuarantineReason
    detail: str


class BadRowError(Exception):
    """A row cannot be used; caught where the rows are read.

    Attributes:
        reason: why.
        detail: what to do.
        contradicts: number of an earlier row that cannot be used either.
    """

    def __init__(
        self, reason: QuarantineReason, detail: str, contradicts: int | None = None
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.contradicts = contradicts


class RowReader:
    """Turns rows into records; remembers what it has seen."""

    def __init__(self, folder: Path, header: list[str]) -> None:
        self._folder = folder
        self._header = header
        self._attributes = [
            name for name in header if name in _ATTRIBUTE_COLUMNS or name not in KNOWN_COLUMNS
        ]
        self._true_root = folder.resolve()
        self._true_parents: dict[str, Path] = {}
        self._seen: dict[tuple[Path, int | None], ImageRecord] = {}

    def read(self, number: int, cells: list[str]) -> ImageRecord:
        """One record.

        Raises:
            BadRowError: the row cannot be used.
        """
        if len(cells) != len(self._header):
            raise BadRowError(
                QuarantineReason.BAD_ROW,
                f"{len(cells)} cells where the header has {len(self._header)}; "
                "put cells that hold commas in quotes",
            )
        cell = {name: text.strip() for name, text in zip(self._header, cells, strict=True)}
        if not cell["image"]:
            raise BadRowError(QuarantineReason.NO_IMAGE, "the image cell is empty")
        image = self._inside(cell["image"], "image")
        if cell.get("patient_id") == "":
            raise BadRowError(
                QuarantineReason.NO_PATIENT,
                "the patient_id cell is empty; privacy is counted per patient",
            )
        record = ImageRecord(
            row=number,
            image=image,
            patient_id=cell.get("patient_id", ""),
            labels=tuple(_parts(cell.get("label", ""))),
            mask=self._inside(cell["mask"], "mask") if cell.get("mask") else None,
            boxes=tuple(_box(part) for part in _parts(cell.get("boxes", ""))),
            attributes={name: cell[name] for name in self._attributes},
            consent=_word(cell, "consent", CONSENTS, QuarantineReason.BAD_CONSENT),
            split=_split(cell),
            frame=_frame(cell.get("frame", "")),
        )
        first = self._seen.setdefault((record.image, record.frame), record)
        if first.consent != record.consent:
            # A withdrawal must not be lost because an older row comes first.
            raise BadRowError(
                QuarantineReason.BAD_CONSENT,
                f"row {first.row} states another consent for the same image",
                contradicts=first.row,
            )
        if first is not record:
            raise BadRowError(QuarantineReason.DUPLICATE, f"the same image as in row {first.row}")
        return record

    def _inside(self, text: str, column: str) -> Path:
        """Path of a file under the root, as the manifest names it but normalised."""
        outside = BadRowError(
            QuarantineReason.OUTSIDE_ROOT,
            f"the {column} path leaves the site's data folder; write it relative to manifest.csv",
        )
        # Spreadsheets come from Windows: its separator counts as one, and its drives as absolute.
        relative = os.path.normpath(text.replace("\\", "/"))
        leaves = relative == ".." or relative.startswith(("/", "../"))
        if leaves or relative[1:2] == ":" or "\x00" in text:
            raise outside
        path = self._folder / relative
        parent, name = os.path.split(relative)
        if parent not in self._true_parents:
            self._true_parents[parent] = (self._folder / parent).resolve()
        true_path = self._true_parents[parent] / name
        if true_path.is_symlink():
            true_path = true_path.resolve()
        if not true_path.is_relative_to(self._true_root):
            raise outside
        return path


def _parts(text: str) -> Iterator[str]:
    """Non-empty parts between semicolons."""
    return (part.strip() for part in text.split(";") if part.strip())


def _box(text: str) -> Box:
    """Parse ``x0 y0 x1 y1 class``; the class may hold spaces."""
    bad = BadRowError(
        QuarantineReason.BAD_BOXES,
        "a box is 'x0 y0 x1 y1 class' in pixels with 0 <= x0 < x1 and 0 <= y0 < y1",
    )
    fields = text.split(maxsplit=4)
    if len(fields) != 5:
        raise bad
    try:
        x0, y0, x1, y1 = (float(number) for number in fields[:4])
    except ValueError:
        raise bad from None
    if not (0 <= x0 < x1 < math.inf and 0 <= y0 < y1 < math.inf):
        raise bad
    return Box(x0, y0, x1, y1, fields[4])


def _word(
    cell: Mapping[str, str], column: str, words: tuple[str, ...], reason: QuarantineReason
) -> str | None:
    """One of the words a column allows; None where the manifest has no such column."""
    if column not in cell:
        return None
    word = cell[column].lower()
    if word not in words:
        raise BadRowError(
            reason,
            f"the {column} cell is {'unknown' if word else 'empty'}; "
            f"it is one of {', '.join(words)}",
        )
    return word


def _split(cell: Mapping[str, str]) -> str | None:
    return _word(cell, "split", SPLITS, QuarantineReason.BAD_SPLIT) if cell.get("split") else None


def _frame(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise BadRowError(
            QuarantineReason.BAD_FRAME, "the frame cell is a whole number, counted from 0"
        )
    return int(text)
