"""manifest.csv: what is read, what is set aside and why, and what never shows in a message."""

import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmed.data.images import read_mask
from fedmed.data.manifest import Box, read_manifest
from fedmed.data.quarantine import QuarantineReason
from fedmed.errors import DataError

LGG = Path(__file__).parents[3] / "shared" / "data" / "lgg_mri"
MARKER = "ZZQMARKER"


def write(folder, text, encoding="utf-8"):
    (folder / "manifest.csv").write_bytes(text.encode(encoding))
    return folder


def one(folder, header, cells):
    """Record or quarantined row of a manifest of one row."""
    manifest = read_manifest(write(folder, f"{header}\n{cells}\n"))
    (row,) = (*manifest.records, *manifest.quarantined)
    return row


def test_every_column_of_the_contract(tmp_path):
    manifest = read_manifest(
        write(
            tmp_path,
            "image,patient_id,label,mask,boxes,sex,age,scanner,consent,split,frame\n"
            'a/1.dcm,P1,"mass; cyst",m/1.png,"1 2 3.5 4 mass; 5 6 7 8 large cyst",'
            "F,61,GE,yes,val,3\n"
            "a/2.dcm,P2,0,,,,,,No,,\n",
        )
    )
    first, second = manifest.records
    assert manifest.quarantined == ()
    assert manifest.root == tmp_path
    assert manifest.columns >= {"image", "patient_id", "scanner", "frame"}
    assert first.row == 2
    assert first.image == tmp_path / "a" / "1.dcm"
    assert manifest.name_of(first.image) == "a/1.dcm"
    assert first.patient_id == "P1"
    assert first.labels == ("mass", "cyst")
    assert first.mask == tmp_path / "m" / "1.png"
    assert first.boxes == (Box(1, 2, 3.5, 4, "mass"), Box(5, 6, 7, 8, "large cyst"))
    assert first.attributes == {"sex": "F", "age": "61", "scanner": "GE"}
    assert (first.consent, first.split, first.frame) == ("yes", "val", 3)
    assert second.labels == ("0",)
    assert second.mask is None
    assert second.boxes == ()
    assert (second.consent, second.split, second.frame) == ("no", None, None)


def test_columns_that_are_absent(tmp_path):
    record = one(tmp_path, "image", "a.png")
    assert (record.consent, record.split, record.frame) == (None, None, None)
    assert record.patient_id == ""
    assert record.labels == ()
    assert record.attributes == {}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_encodings_and_line_ends(tmp_path, encoding, newline):
    text = newline.join(
        ["image,patient_id,label", 'a.png,"Ä, ß","Lungenödem"', "", "b.png,c,d", ""]
    )
    manifest = read_manifest(write(tmp_path, text, encoding))
    assert [record.patient_id for record in manifest.records] == ["Ä, ß", "c"]
    assert [record.row for record in manifest.records] == [2, 4]
    assert manifest.records[0].labels == ("Lungenödem",)


def test_case_of_the_contracts_columns_does_not_matter(tmp_path):
    record = one(tmp_path, " Image ,Patient_ID,CONSENT,Scanner", "a.png,P,withdrawn,GE")
    assert record.consent == "withdrawn"
    assert record.attributes == {"Scanner": "GE"}


@pytest.mark.parametrize(
    ("header", "cells", "reason"),
    [
        ("image,label", ",x", "no-image"),
        ("image,patient_id", "a.png, ", "no-patient"),
        ("image,boxes", "a.png,1 2 3 4", "bad-boxes"),
        ("image,boxes", "a.png,1 2 x 4 mass", "bad-boxes"),
        ("image,boxes", "a.png,3 2 3 4 mass", "bad-boxes"),
        ("image,boxes", "a.png,1 5 3 4 mass", "bad-boxes"),
        ("image,boxes", "a.png,-1 2 3 4 mass", "bad-boxes"),
        ("image,boxes", "a.png,1 2 3 inf mass", "bad-boxes"),
        ("image,boxes", "a.png,1 2 nan 4 mass", "bad-boxes"),
        ("image,boxes", "a.png,1 2 3 4 ok;5 6 7", "bad-boxes"),
        ("image,consent", "a.png,maybe", "bad-consent"),
        ("image,consent", "a.png,", "bad-consent"),
        ("image,split", "a.png,holdout", "bad-split"),
        ("image,frame", "a.png,-1", "bad-frame"),
        ("image,frame", "a.png,1.5", "bad-frame"),
        ("image,frame", "a.png,٣", "bad-frame"),
        ("image,frame", f"a.png,{'9' * 5000}", "bad-frame"),
        ("image,label", "a.png,x,y", "bad-row"),
        ("image,label", "a.png", "bad-row"),
        ("image", "/etc/passwd", "outside-root"),
        ("image", "../a.png", "outside-root"),
        ("image", "b/../../a.png", "outside-root"),
        ("image", r"..\a.png", "outside-root"),
        ("image", r"C:\archive\a.png", "outside-root"),
        ("image,mask", "a.png,../m.png", "outside-root"),
    ],
)
def test_bad_rows_are_set_aside(tmp_path, header, cells, reason):
    good = ",".join({"image": "good.png", "consent": "yes"}.get(n, "") for n in header.split(","))
    good = good if "patient_id" not in header else "good.png,P"
    manifest = read_manifest(write(tmp_path, f"{header}\n{cells}\n{good}\n"))
    assert [record.row for record in manifest.records] == [3]
    (bad,) = manifest.quarantined
    assert (bad.row, bad.reason) == (2, reason)
    assert bad.reason in QuarantineReason
    assert bad.detail


def test_paths_may_wander_inside_the_root(tmp_path):
    for text in ("b/../a.png", "./a.png", r"b\..\a.png", "..a.png"):
        assert one(tmp_path, "image", text).image.parent == tmp_path


def test_symbolic_links(tmp_path):
    outside, site = tmp_path / "outside", tmp_path / "site"
    outside.mkdir()
    (site / "real").mkdir(parents=True)
    (outside / "a.png").touch()
    (site / "real" / "a.png").touch()
    (site / "folder").symlink_to(outside)
    (site / "file.png").symlink_to(outside / "a.png")
    (site / "inner").symlink_to(site / "real")
    manifest = read_manifest(
        write(site, "image\nfolder/a.png\nfile.png\ninner/a.png\nfolder/../real/b.png\n")
    )
    assert [record.row for record in manifest.records] == [4, 5]
    assert [(bad.row, bad.reason) for bad in manifest.quarantined] == [
        (2, "outside-root"),
        (3, "outside-root"),
    ]
    # The root itself may be reached through a link.
    (tmp_path / "alias").symlink_to(site)
    assert len(read_manifest(tmp_path / "alias").records) == 2


def test_duplicates(tmp_path):
    manifest = read_manifest(
        write(
            tmp_path,
            "image,patient_id,frame\na.dcm,P,0\na.dcm,P,1\nb/../a.dcm,P,0\na.dcm,P,\na.dcm,P,1\n",
        )
    )
    assert [record.row for record in manifest.records] == [2, 3, 5]
    assert [(bad.row, bad.reason) for bad in manifest.quarantined] == [
        (4, "duplicate"),
        (6, "duplicate"),
    ]


def test_a_second_row_that_withdraws_consent_is_not_a_mere_duplicate(tmp_path):
    manifest = read_manifest(
        write(tmp_path, "image,consent\na.png,yes\nb.png,yes\na.png,withdrawn\na.png,yes\n")
    )
    assert [record.row for record in manifest.records] == [3]
    assert [(bad.row, bad.reason) for bad in manifest.quarantined] == [
        (2, "bad-consent"),
        (4, "bad-consent"),
        (5, "duplicate"),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "missing"),
        (b"", "no header"),
        (b"\n\n", "no header"),
        (b"\nimage\na.png\n", "no header"),
        (b"a.png,b,c\n", "no header"),
        (b"image;label\na.png;b\n", "commas"),
        (b"image,label,image\na.png,b,c\n", "more than one column"),
        (b"label,patient_id\nx,y\n", "no column 'image'"),
        ("image\nä.png\n".encode("latin-1"), "not UTF-8"),
        ("image\na.png\n".encode("utf-16"), "not UTF-8"),
        (b'image\n"a.png\n', "quote"),
        (b"image\n" + b"a" * 200_000, "too long"),
        (b"image,consents\na.png,no\n", "is it 'consent'"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, content, words):
    if content is not None:
        (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.csv") as error:
        read_manifest(tmp_path)
    assert words in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_require(tmp_path):
    manifest = read_manifest(write(tmp_path, "image,patientid,labels\na,b,c\n"))
    manifest.require({"image"})
    with pytest.raises(DataError) as error:
        manifest.require(["image", "patient_id", "label", "mask"])
    text = str(error.value)
    assert "'label', 'mask', 'patient_id'" in text
    assert "image, labels, patientid" in text
    assert "is 'patientid' meant to be 'patient_id'?" in text
    assert "is 'labels' meant to be 'label'?" in text


@pytest.mark.parametrize(
    "text",
    [
        f"{MARKER},F,61\n",  # no header: the first patient stands there
        f"image,patient_id\na.png,{MARKER}\n\xff",
        f'image,patient_id\na.png,"{MARKER}\n',
        f"image,image\n{MARKER},{MARKER}\n",
        f"image;patient_id\na.png;{MARKER}\n",
        f"label,patient_id\nx,{MARKER}\n",
    ],
)
def test_no_patient_in_errors(tmp_path, text, caplog, capfd):
    (tmp_path / "manifest.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as error:
        read_manifest(tmp_path)
    assert MARKER not in str(error.value)
    assert error.value.__cause__ is None
    assert MARKER not in caplog.text + "".join(capfd.readouterr())


def test_no_patient_in_quarantined_rows_or_representations(tmp_path):
    header = "image,patient_id,label,mask,boxes,consent,split,frame,sex,note"
    columns = header.split(",")
    rows = []
    for number, slipped in enumerate(columns):
        cells = dict.fromkeys(columns, "")
        cells |= {"image": f"{number}.png", "patient_id": MARKER, "consent": "yes", "note": MARKER}
        cells[slipped] = f"../{MARKER}" if slipped in ("image", "mask") else MARKER
        rows.append(",".join(cells.values()))
    rows += [f"a,{MARKER}", f",{MARKER}" + "," * 8, ",".join(["9.png", MARKER, *[MARKER] * 8])]
    manifest = read_manifest(write(tmp_path, "\n".join([header, *rows]) + "\n"))
    reasons = Counter(str(bad.reason) for bad in manifest.quarantined)
    assert set(reasons) >= {
        "outside-root", "bad-boxes", "bad-consent", "bad-split", "bad-frame", "bad-row", "no-image",
    }  # fmt: skip
    assert MARKER not in repr(manifest.quarantined)
    kept = [record for record in manifest.records if MARKER not in record.labels]
    assert kept
    assert MARKER not in repr(kept)
    assert kept[0].patient_id == MARKER  # control: it is there, but not shown


def test_real_manifests():
    if not LGG.is_dir():
        pytest.skip("shared/data/lgg_mri is not here")
    patients = Counter()
    images = 0
    for site in ("CS", "DU", "FG"):
        manifest = read_manifest(LGG / site)
        manifest.require({"image", "patient_id", "label", "mask", "boxes", "sex", "age", "consent"})
        assert manifest.quarantined == ()
        images += len(manifest.records)
        patients[site] = len({record.patient_id for record in manifest.records})
        for record in manifest.records[::25]:
            assert record.image.is_file()
            if record.mask is not None:
                rows, columns = np.nonzero(read_mask(record.mask))
                (box,) = record.boxes
                # The README says: bounding box of the lesion.
                assert (box.x0, box.y0) == (columns.min(), rows.min())
                assert (box.x1, box.y1) == (columns.max() + 1, rows.max() + 1)
    assert images == 1922
    assert patients == {"CS": 16, "DU": 45, "FG": 14}


words = st.text(st.characters(blacklist_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=8)
labels = words.filter(lambda text: ";" not in text and text.strip() == text)
edges = st.integers(0, 5000)


@st.composite
def drawn_boxes(draw):
    x0, y0, width, height = draw(edges), draw(edges), draw(edges), draw(edges)
    return Box(x0, y0, x0 + width + 1, y0 + height + 1, draw(labels))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(boxes=st.lists(drawn_boxes(), max_size=5), classes=st.lists(labels, max_size=4))
def test_boxes_and_labels_survive_writing_and_reading(tmp_path, boxes, classes):
    cell = "; ".join(f"{box.x0} {box.y0} {box.x1} {box.y1} {box.label}" for box in boxes)
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["image", "boxes", "label"], ["a.png", cell, ";".join(classes)]])
    (record,) = read_manifest(write(tmp_path, buffer.getvalue())).records
    assert record.boxes == tuple(boxes)
    assert record.labels == tuple(classes)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.binary(max_size=300), header=st.sampled_from([b"", b"image,boxes,frame,consent\n"])
)
def test_any_bytes_give_a_manifest_or_a_data_error(tmp_path, content, header):
    (tmp_path / "manifest.csv").write_bytes(header + content)
    try:
        manifest = read_manifest(tmp_path)
    except DataError:
        return
    for record in manifest.records:
        assert record.image.is_relative_to(tmp_path)
        assert ".." not in record.image.parts
