"""Class names of a site in the consortium's words."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedmed.data.labels import LabelMap, LabelSchema, check_labels
from fedmed.data.manifest import Box, ImageRecord
from fedmed.errors import DataError

SCHEMA = LabelSchema(("normal", "pneumonia", "effusion"), multi_label=False)
MULTI = LabelSchema(SCHEMA.names, multi_label=True)


def record(row, *labels, patient="P", boxes=()):
    return ImageRecord(
        row=row,
        image=Path(f"{row}.png"),
        patient_id=patient,
        labels=labels,
        mask=None,
        boxes=tuple(Box(0, 0, 1, 1, label) for label in boxes),
        attributes={},
        consent=None,
        split=None,
        frame=None,
    )


def write(folder, text):
    (folder / "labels.yaml").write_text(text, encoding="utf-8")
    return folder


def test_without_a_file_names_stand_for_themselves(tmp_path):
    label_map = LabelMap.read(tmp_path)
    assert label_map.encode(["effusion"], SCHEMA) == (2,)
    assert label_map.encode([], SCHEMA) == ()
    assert label_map.encode(["effusion", "normal", "effusion"], MULTI) == (0, 2)


def test_a_file_maps_names(tmp_path):
    text = "version: 1\nmap:\n  Lungenentzündung: pneumonia\n  1: effusion\n  '0': 0\n"
    label_map = LabelMap.read(write(tmp_path, text))
    assert label_map.encode(["Lungenentzündung"], SCHEMA) == (1,)
    assert label_map.encode(["1"], SCHEMA) == (2,)  # the file goes before the number
    assert label_map.encode(["0"], SCHEMA) == (0,)
    assert label_map.encode(["2"], SCHEMA) == (2,)
    assert label_map.encode(["Lungenentzündung", "pneumonia"], SCHEMA) == (1,)


def test_numbers_are_indices_only_where_no_class_has_that_name():
    assert LabelMap().encode(["1"], SCHEMA) == (1,)
    assert LabelMap().encode(["1"], LabelSchema(("2", "1", "0"), multi_label=False)) == (1,)
    assert LabelMap().encode(["0"], LabelSchema(("2", "1", "0"), multi_label=False)) == (2,)
    for wrong in ("3", "-1", "1.0", "1e0", "²", "9" * 5000):
        with pytest.raises(DataError):
            LabelMap().encode([wrong], SCHEMA)


def test_several_classes_where_one_is_allowed():
    with pytest.raises(DataError, match="several"):
        LabelMap().encode(["normal", "effusion"], SCHEMA)
    rows = [record(2, "normal"), record(3, "normal", "effusion"), record(7, "0", "1"), record(9)]
    with pytest.raises(DataError, match=r"row 3, 7 of manifest\.csv"):
        check_labels(rows, SCHEMA, LabelMap())
    check_labels(rows, MULTI, LabelMap())


def test_all_unmapped_classes_are_listed_at_once_with_lines_that_mend_it(tmp_path):
    rows = [
        record(2, "Pneumonie"),
        record(3, "normal"),
        record(4, "pleural effusion"),
        record(5, 'a "b"'),
        record(6, "Pneumonie"),
    ]
    with pytest.raises(DataError) as error:
        check_labels(rows, SCHEMA, LabelMap())
    text = str(error.value)
    for expected in (
        '"Pneumonie": "pneumonia"',
        '"pleural effusion": "effusion"',
        '"a \\"b\\"": "?"',
        "normal, pneumonia, effusion",
    ):
        assert expected in text
    # The lines it shows are a file that works, once the question mark is filled in.
    lines = text[text.index("version: 1") :].replace('"?"', '"normal"')
    assert set(yaml.safe_load(lines)["map"]) == {"Pneumonie", "pleural effusion", 'a "b"'}
    mended = LabelMap.read(write(tmp_path, lines))
    check_labels(rows, SCHEMA, mended)
    assert mended.encode(["Pneumonie"], SCHEMA) == (1,)


def test_classes_of_boxes():
    rows = [record(2, "whatever", boxes=["effusion", "nodul"]), record(3, boxes=["pneumonia"])]
    with pytest.raises(DataError, match="nodul") as error:
        check_labels(rows, SCHEMA, LabelMap(), boxes=True)
    assert "whatever" not in str(error.value)
    check_labels(rows, SCHEMA, LabelMap({"nodul": "normal"}), boxes=True)


def test_patients_never_show_when_the_columns_have_slipped():
    rows = [record(2, "ZZQMARKER", patient="ZZQMARKER"), record(3, "Pneumonie")]
    with pytest.raises(DataError, match="2 class names") as error:
        check_labels(rows, SCHEMA, LabelMap())
    assert "ZZQMARKER" not in str(error.value)
    many = [record(row, f"ZZQMARKER{row}", patient=f"other{row}") for row in range(2, 40)]
    with pytest.raises(DataError, match="38 class names") as error:
        check_labels(many, SCHEMA, LabelMap())
    assert "ZZQMARKER" not in str(error.value)


def test_a_map_to_a_class_that_does_not_exist():
    with pytest.raises(DataError, match="'a' to 'pneumona'"):
        check_labels([], SCHEMA, LabelMap({"a": "pneumona"}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "version: 1"),
        ("- a\n- b\n", "version: 1"),
        ("map:\n  a: b\n", "version: 1"),
        ("version: 1\nmap:\n  a: b\nmore: 1\n", "version: 1"),
        ("version: 2\nmap:\n  a: b\n", "another version"),
        ("version: 1\nmap: [a, b]\n", "'map'"),
        ("version: 1\nmap:\n  yes: normal\n", "quotes"),
        ("version: 1\nmap:\n  a: no\n", "quotes"),
        ("version: 1\nmap:\n  a: 1.5\n", "quotes"),
        ("version: 1\nmap:\n  a: [normal]\n", "quotes"),
        ("version: 1\nmap:\n  a: 2020-01-01\n", "quotes"),
        ("version: 1\nmap:\n  a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("version: 1\nmap:\n\ta: b\n", "line 3"),
        ("[" * 5000, "not valid YAML"),
        ("version: 1\nmap:\n  2020-99-99: normal\n", "not valid YAML"),
        ("a" * 2_000_000, "1 MiB"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, words):
    with pytest.raises(DataError, match=r"labels\.yaml") as error:
        LabelMap.read(write(tmp_path, text))
    assert words in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "labels.yaml").write_bytes("version: 1\nmap: {ä: b}".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        LabelMap.read(tmp_path)


@pytest.mark.parametrize("names", [(), ("a", ""), ("a", "b", "a"), (" ",)])
def test_schemas_that_make_no_sense(names):
    with pytest.raises(DataError):
        LabelSchema(names, multi_label=False)


@given(
    names=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, unique=True), data=st.data()
)
def test_encoding_gives_the_position_in_the_schema(names, data):
    schema = LabelSchema(tuple(names), multi_label=True)
    chosen = data.draw(st.lists(st.sampled_from(names)))
    expected = tuple(sorted({names.index(name) for name in chosen}))
    assert LabelMap().encode(chosen, schema) == expected
    renamed = {f"local {name}": name for name in names}
    assert LabelMap(renamed).encode([f"local {name}" for name in chosen], schema) == expected
