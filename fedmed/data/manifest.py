"""The catalogue of a site's images: ``manifest.csv``, one row per image.

Columns are those of the data contract: ``image``, ``patient_id``, ``label``, ``mask``, ``boxes``,
``consent``, ``split``, ``frame``; any other column is an attribute of the image, for subgroups. A
row that cannot be used is set aside with a reason and the reading goes on; a file that cannot be
read as a catalogue at all is a :class:`~fedmed.errors.DataError`. No message quotes a cell: in a
file whose columns have slipped any cell may hold a patient's name.
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedmed.data.manifest_rows import (
    KNOWN_COLUMNS,
    BadRowError,
    Box,
    ImageRecord,
    QuarantinedRow,
    RowReader,
)
from fedmed.errors import DataError

__all__ = ["Box", "ImageRecord", "Manifest", "QuarantinedRow", "read_manifest"]

FILE_NAME = "manifest.csv"
_HEADER_ROW = 1


@dataclass(frozen=True)
class Manifest:
    """A site's catalogue.

    Attributes:
        root: the folder that holds ``manifest.csv``.
        columns: names of the columns found.
        records: usable rows in the file's order.
        quarantined: the other rows.
    """

    root: Path
    columns: frozenset[str]
    records: tuple[ImageRecord, ...]
    quarantined: tuple[QuarantinedRow, ...] = ()

    def require(self, columns: Iterable[str]) -> None:
        """Check that the columns are there.

        Raises:
            DataError: names the missing ones, those found, and the nearest by spelling.
        """
        _require(columns, self.columns)

    def name_of(self, path: Path) -> str:
        """Name of a file for messages: relative to the root."""
        return path.relative_to(self.root).as_posix()


def read_manifest(folder: Path) -> Manifest:
    """Read ``manifest.csv`` (UTF-8 with or without byte order mark, comma-separated).

    Args:
        folder: the site's data folder. Paths in the manifest are relative to it and may not leave
            it, through symbolic links either.

    Returns:
        The usable and the quarantined rows. Whether the images exist is not looked at.

    Raises:
        DataError: no such file, not UTF-8, no header, a column twice, no ``image`` column.
    """
    header, rows = _read_rows(folder / FILE_NAME)
    _require(["image"], header)
    reader = RowReader(folder, header)
    records: dict[int, ImageRecord] = {}
    quarantined: dict[int, QuarantinedRow] = {}
    for number, cells in rows:
        try:
            records[number] = reader.read(number, cells)
        except BadRowError as bad:
            quarantined[number] = QuarantinedRow(number, bad.reason, bad.detail)
            if bad.contradicts in records:
                del records[bad.contradicts]
                quarantined[bad.contradicts] = QuarantinedRow(
                    bad.contradicts, bad.reason, f"row {number} states another consent"
                )
    return Manifest(
        folder,
        frozenset(header),
        tuple(records.values()),
        tuple(quarantined[number] for number in sorted(quarantined)),
    )


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and numbered, non-empty rows of the file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [
                (number, cells)
                for number, cells in enumerate(csv.reader(file, strict=True), start=_HEADER_ROW)
                if any(cell.strip() for cell in cells)
            ]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{FILE_NAME} is missing in the site's data folder; `fedmed data index` makes one"
        ) from None
    except OSError as error:
        raise DataError(f"{FILE_NAME} cannot be opened ({type(error).__name__})") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{FILE_NAME} is not UTF-8 (byte {error.start}); save it as 'CSV UTF-8'"
        ) from None
    except csv.Error:
        raise DataError(
            f"{FILE_NAME} is not valid CSV: a quote that does not close, or a cell that is too long"
        ) from None
    if not rows or rows[0][0] != _HEADER_ROW:
        raise DataError(f"{FILE_NAME} has no header; its first row names the columns")
    return _check_header(rows[0][1]), rows[1:]


def _check_header(cells: list[str]) -> list[str]:
    """Names of the columns; the contract's own are matched without regard to case."""
    if len(cells) == 1 and any(separator in cells[0] for separator in ";\t"):
        raise DataError(f"{FILE_NAME} is not separated by commas; save it with ',' as separator")
    known = {name.casefold(): name for name in KNOWN_COLUMNS}
    header = [known.get(cell.strip().casefold(), cell.strip()) for cell in cells]
    if not known.keys() & {name.casefold() for name in header}:
        # Not quoted: without a header these are the first patient's cells.
        raise DataError(
            f"{FILE_NAME} has no header: its first row holds none of the columns "
            f"{', '.join(KNOWN_COLUMNS)}; the first row names the columns"
        )
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        raise DataError(
            f"{FILE_NAME} has more than one column named {', '.join(map(repr, twice))}; "
            "each column needs a name of its own"
        )
    # A misspelt consent column would be taken for an attribute, and withdrawals be overlooked.
    if "consent" not in header:
        for near in difflib.get_close_matches("consent", header, n=1, cutoff=0.75):
            raise DataError(f"{FILE_NAME} has a column '{near}'; is it 'consent'? Rename it")
    return header


def _require(columns: Iterable[str], found: Iterable[str]) -> None:
    present = sorted(found)
    missing = sorted(set(columns) - set(present))
    if not missing:
        return
    hints = [
        f"is '{near}' meant to be '{name}'?"
        for name in missing
        for near in difflib.get_close_matches(name, present, n=1)
    ]
    raise DataError(
        f"{FILE_NAME} has no column {', '.join(map(repr, missing))}; "
        f"it has {', '.join(present)}{''.join('; ' + hint for hint in hints)}"
    )
