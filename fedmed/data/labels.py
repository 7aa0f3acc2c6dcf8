"""Class names of a site mapped to those of the consortium, checked before anything is trained.

The consortium agrees on a :class:`LabelSchema`. A site whose manifest uses other names writes them
down once, in ``labels.yaml`` beside the manifest::

    version: 1
    map:
      tumour: lesion
      "0": normal
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from fedmed.data.manifest import ImageRecord
from fedmed.errors import DataError

FILE_NAME = "labels.yaml"
_VERSION = 1
_LARGEST_FILE = 2**20
# More unknown names than this are not class names: the label column holds something else.
_MOST_NAMES_SHOWN = 20
_MOST_ROWS_SHOWN = 10


@dataclass(frozen=True)
class LabelSchema:
    """The classes that the consortium trains on; the index of a name is its class index.

    Attributes:
        names: class names, each once.
        multi_label: whether an image may have several classes, or none.

    Raises:
        DataError: no names, an empty one, or one twice.
    """

    names: tuple[str, ...]
    multi_label: bool

    def __post_init__(self) -> None:
        if not self.names or not all(name.strip() for name in self.names):
            raise DataError("the label schema needs at least one class, and no empty name")
        if len(set(self.names)) != len(self.names):
            raise DataError("the label schema names a class twice")

    def index_of(self, name: str) -> int | None:
        """Class index of a consortium's name, or of a number where no class has that name."""
        if name in self.names:
            return self.names.index(name)
        if name.isascii() and name.isdigit() and len(name) <= 9 and int(name) < len(self.names):
            return int(name)
        return None


@dataclass(frozen=True)
class LabelMap:
    """A site's class names in the consortium's words.

    Attributes:
        names: consortium's name by local name; a name that is missing stands for itself.
    """

    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> LabelMap:
        """Read ``labels.yaml`` of a site; without the file every name stands for itself.

        Raises:
            DataError: the file is not what the module's docstring shows.
        """
        path = folder / FILE_NAME
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise DataError(f"{FILE_NAME} is larger than 1 MiB; it is no list of class names")
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            return cls()
        except (OSError, UnicodeDecodeError):
            raise DataError(f"{FILE_NAME} cannot be read as UTF-8 text") from None
        except yaml.MarkedYAMLError as error:
            line = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise DataError(f"{FILE_NAME} is not valid YAML{line}") from None
        except (yaml.YAMLError, RecursionError, ValueError):
            raise DataError(f"{FILE_NAME} is not valid YAML") from None
        return cls(_check_content(content))

    def class_of(self, label: str, schema: LabelSchema) -> int | None:
        """Class index of a local name, None where it has none."""
        return schema.index_of(self.names.get(label, label))

    def encode(self, labels: Iterable[str], schema: LabelSchema) -> tuple[int, ...]:
        """Class indices of one image's labels, ascending, each once.

        Raises:
            DataError: a name is not mapped, or there are several where the schema allows one.
        """
        indices: set[int] = set()
        unmapped: set[str] = set()
        for label in labels:
            index = self.class_of(label, schema)
            if index is None:
                unmapped.add(label)
            else:
                indices.add(index)
        if unmapped:
            raise DataError(_unmapped_message(unmapped, schema))
        if len(indices) > 1 and not schema.multi_label:
            raise DataError("an image has several classes where the label schema allows one")
        return tuple(sorted(indices))


def check_labels(
    records: Iterable[ImageRecord],
    schema: LabelSchema,
    label_map: LabelMap,
    *,
    boxes: bool = False,
) -> None:
    """Check the labels of all rows at once, when a site joins.

    Args:
        records: the site's rows.
        schema: the consortium's classes.
        label_map: the site's words for them.
        boxes: check the classes of the boxes instead of the images' labels.

    Raises:
        DataError: lists every class name that is not mapped with the lines to add to
            ``labels.yaml``; or lists the rows with several classes where the schema allows one.
    """
    for local, name in label_map.names.items():
        if schema.index_of(name) is None:
            raise DataError(
                f"{FILE_NAME} maps '{_shown(local)}' to '{_shown(name)}', which is no class of the "
                f"consortium; these are: {', '.join(schema.names)}"
            )
    unmapped: set[str] = set()
    patients: set[str] = set()
    wrong_rows: list[int] = []
    for record in records:
        labels = tuple(box.label for box in record.boxes) if boxes else record.labels
        indices = {label_map.class_of(label, schema) for label in labels}
        if None in indices:
            unmapped.update(label for label in labels if label_map.class_of(label, schema) is None)
            patients.add(record.patient_id)
        elif len(indices) > 1 and not schema.multi_label and not boxes:
            wrong_rows.append(record.row)
    if unmapped:
        # A column in the wrong place would show patients here.
        slipped = bool(unmapped & patients)
        raise DataError(_unmapped_message(unmapped, schema, slipped=slipped))
    if wrong_rows:
        more = ", ..." if len(wrong_rows) > _MOST_ROWS_SHOWN else ""
        raise DataError(
            "the label schema allows one class per image; several are in row "
            f"{', '.join(map(str, wrong_rows[:_MOST_ROWS_SHOWN]))}{more} of manifest.csv"
        )


def _unmapped_message(names: set[str], schema: LabelSchema, *, slipped: bool = False) -> str:
    """Say which names are not mapped and which lines map them."""
    classes = ", ".join(schema.names)
    if slipped or len(names) > _MOST_NAMES_SHOWN:
        return (
            f"the manifest has {len(names)} class names that the consortium does not "
            f"know; is its label column the right one? Classes of the consortium: {classes}"
        )
    lines = [
        f"  {_quoted(name)}: {_quoted(_nearest(name, schema.names))}" for name in sorted(names)
    ]
    return (
        f"the manifest has class names that the consortium does not know: "
        f"{', '.join(_quoted(name) for name in sorted(names))}. "
        f"Classes of the consortium: {classes}. Check and add to {FILE_NAME} beside the manifest:\n"
        f"version: {_VERSION}\nmap:\n" + "\n".join(lines)
    )


def _nearest(name: str, names: tuple[str, ...]) -> str:
    """Return the consortium's name that is spelt most alike, or a blank to fill in."""
    folded = {known.casefold(): known for known in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[near[0]] if near else "?"


def _shown(name: str) -> str:
    return name if len(name) <= 40 else name[:40] + "..."


def _quoted(name: str) -> str:
    """Write a YAML double-quoted scalar, on one line."""
    return '"' + _shown(name).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _check_content(content: object) -> dict[str, str]:
    """Validate the parsed file and return its map with names as text."""
    if not isinstance(content, dict) or set(content) != {"version", "map"}:
        raise DataError(f"{FILE_NAME} has two entries, 'version: {_VERSION}' and 'map:'")
    if content["version"] != _VERSION:
        raise DataError(f"{FILE_NAME} is of another version; this fedmed reads {_VERSION}")
    mapping = content["map"]
    if not isinstance(mapping, dict):
        raise DataError(f"'map' in {FILE_NAME} is a list of lines 'local name: consortium name'")
    for name in (*mapping, *mapping.values()):
        # YAML reads yes, no, on, off as truth values and 1.0 as a number.
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise DataError(
                f"put the class names in {FILE_NAME} in quotes: one is not read as text"
            )
    return {str(local).strip(): str(name).strip() for local, name in mapping.items()}
