"""``docs/security.md`` names tests; a test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| [^|]+ \| `(?P<file>[a-z_/]+\.py)` \| (?P<tests>.+) \|$", re.MULTILINE)


def named_tests() -> list[tuple[str, str]]:
    text = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    return [
        (row["file"], name)
        for row in ROW.finditer(text)
        for name in re.findall(r"`(test_\w+)`", row["tests"])
    ]


def test_the_table_of_attacks_is_found() -> None:
    assert len(named_tests()) > 60


@pytest.mark.parametrize(("file", "name"), named_tests())
def test_a_test_that_the_document_names_exists(file: str, name: str) -> None:
    source = (REPOSITORY / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^ *def {name}\(", source, re.MULTILINE)
