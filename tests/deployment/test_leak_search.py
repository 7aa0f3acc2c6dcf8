"""The search of the egress test finds what is there, however it is packed."""

import base64
import gzip
import io
import json
import random
import zipfile
import zlib

import numpy as np
import pytest
from leak_search import LeakSearch, row_windows, spellings
from PIL import Image

MARKER = b"Zq7XkVw9-0001"
NOISE = random.Random(1).randbytes(200_000)
PIXELS = np.random.default_rng(2).random((1, 1, 4, 32), np.float32)


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("inner.txt", data)
    return buffer.getvalue()


def drawn(data):
    buffer = io.BytesIO()
    Image.frombytes("L", (len(data), 1), data).save(buffer, "PNG")
    return buffer.getvalue()


PACKINGS = {
    "raw": lambda data: data,
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "zip": zipped,
    "base64": base64.b64encode,
    "urlsafe": base64.urlsafe_b64encode,
    "shifted base64": lambda data: base64.b64encode(b"xy" + data),
    "hex": lambda data: data.hex().encode(),
    "capital hex": lambda data: data.hex().upper().encode(),
    "utf-16": lambda data: data.decode("latin-1").encode("utf-16-le"),
    "png": drawn,
    "base64 of zlib": lambda data: base64.b64encode(zlib.compress(data)),
    "json of base64 of gzip": lambda data: json.dumps(
        {"a": base64.b64encode(gzip.compress(data)).decode()}
    ).encode(),
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_marker_is_found_in_every_packing(packing):
    search = LeakSearch({"marker": spellings(MARKER)})
    packed = PACKINGS[packing](b"before " + MARKER + b" behind")
    assert search.found_in(NOISE + packed + NOISE) == {"marker"}
    assert search.found_in(NOISE + PACKINGS[packing](b"nothing of that") + NOISE) == set()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "u1"])
@pytest.mark.parametrize("packing", ["raw", "gzip", "base64", "hex"])
def test_one_row_of_a_preprocessed_image_is_found(dtype, packing):
    search = LeakSearch({"row": row_windows(PIXELS)})
    row = PIXELS[0, 0, 2]
    row = np.rint(row * 255) if dtype == "u1" else row
    packed = PACKINGS[packing](row.astype(dtype).tobytes())
    assert search.found_in(NOISE[:77] + packed + NOISE) == {"row"}
    other = np.roll(PIXELS, 1, axis=-1) ** 2
    assert search.found_in(NOISE + PACKINGS[packing](other.astype(dtype).tobytes())) == set()


def test_a_row_that_is_nearly_constant_is_no_needle():
    assert list(row_windows(np.zeros((2, 1, 4, 32), np.float32))) == []
