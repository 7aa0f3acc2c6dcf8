"""Pictures, arrays and masks of any format; resizing of image, mask and boxes alike."""

import io
import os
import struct
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy_format
from PIL import Image
from pydicom.data.data_manager import DATA_ROOT

from fedmed.data.dicom import read_dicom
from fedmed.data.images import (
    DecodeLimits,
    Letterbox,
    QuarantineReason,
    read_image,
    read_mask,
    resize_keeping_aspect,
    resize_mask,
)
from fedmed.data.manifest import Box
from fedmed.errors import ConfigurationError, ImageError

LUMA = np.array([0.299, 0.587, 0.114])


def noise(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(
        0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True
    )


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def reason_of(read, path, **arguments):
    with pytest.raises(ImageError) as error:
        read(path, **arguments)
    assert str(error.value).startswith(f"{path.name}: ")
    assert str(path.parent) not in str(error.value)
    return error.value.reason


def image_reason(path, **arguments):
    return reason_of(read_image, path, channels=1, **arguments)


def by_percentiles(values):
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values - low) / (high - low), 0, 1)


@pytest.mark.parametrize("extension", ["png", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_pictures(tmp_path, extension, dtype):
    pixels = noise((20, 30), dtype)
    path = save(tmp_path / f"a.{extension}", pixels)
    image = read_image(path, channels=1)
    assert image.dtype == np.float32
    assert image.flags.c_contiguous
    np.testing.assert_allclose(image, pixels[np.newaxis] / np.iinfo(dtype).max, atol=1e-7)
    assert (read_image(path, channels=3) == image).all()


def test_colour_pictures(tmp_path):
    pixels = noise((20, 30, 3))
    path = save(tmp_path / "a.png", pixels)
    colour = read_image(path, channels=3)
    np.testing.assert_allclose(colour, pixels.transpose(2, 0, 1) / 255, atol=1e-7)
    np.testing.assert_allclose(read_image(path, channels=1)[0], pixels @ LUMA / 255, atol=1e-6)
    transparent = np.dstack([pixels, noise((20, 30), seed=1)])
    with_alpha = read_image(save(tmp_path / "b.png", transparent), channels=3)
    np.testing.assert_array_equal(with_alpha, colour)


def test_jpeg_is_close_to_what_was_saved(tmp_path):
    pixels = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    image = read_image(save(tmp_path / "a.jpg", pixels, quality=95), channels=1)
    assert np.abs(image[0] - pixels / 255).max() < 0.03


def test_exif_orientation_does_not_turn_the_rows(tmp_path):
    picture = Image.fromarray(noise((20, 30)))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", channels=1).shape == (1, 20, 30)


def test_palette_bilevel_and_grey_with_alpha(tmp_path):
    indices = noise((20, 30)) % 4
    picture = Image.fromarray(indices)
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 200, 10], [9, 9, 255]], np.uint8)
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "p.png")
    expected = colours[indices].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(read_image(tmp_path / "p.png", channels=3), expected, atol=1e-7)
    bilevel = indices > 1
    Image.fromarray(bilevel).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", channels=1)[0], bilevel)
    two = np.dstack([noise((20, 30)), np.full((20, 30), 7, np.uint8)])
    Image.fromarray(two).save(tmp_path / "la.png")
    np.testing.assert_allclose(
        read_image(tmp_path / "la.png", channels=1)[0], two[..., 0] / 255, atol=1e-7
    )


def test_float_and_32_bit_tiff_by_percentiles(tmp_path):
    for index, values in enumerate(
        (
            np.random.default_rng(0).normal(50, 20, (20, 30)).astype(np.float32),
            noise((20, 30), np.int32) // 1000,
        )
    ):
        path = save(tmp_path / f"{index}.tif", values)
        image = read_image(path, channels=1)[0]
        np.testing.assert_allclose(image, by_percentiles(values), atol=1e-5)


def test_pages_of_a_tiff_are_frames(tmp_path):
    pages = noise((5, 20, 30))
    first, *others = (Image.fromarray(page) for page in pages)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    for frame, index in ((None, 2), (0, 0), (4, 4)):
        image = read_image(tmp_path / "a.tif", channels=1, frame=frame)[0]
        np.testing.assert_allclose(image, pages[index] / 255, atol=1e-7)
    assert image_reason(tmp_path / "a.tif", frame=5) == "bad-frame"
    assert image_reason(save(tmp_path / "a.png", pages[0]), frame=1) == "bad-frame"


def test_the_content_decides_not_the_name(tmp_path):
    pixels = noise((20, 30))
    save(tmp_path / "a.dcm", pixels, format="PNG")
    np.testing.assert_allclose(
        read_image(tmp_path / "a.dcm", channels=1)[0], pixels / 255, atol=1e-7
    )
    source = Path(DATA_ROOT) / "test_files" / "MR_small.dcm"
    bare = tmp_path / "a.png"
    bare.write_bytes(source.read_bytes()[132:])
    np.testing.assert_array_equal(read_image(bare, channels=1), read_dicom(source, channels=1))
    # A DICOM file whose preamble is a TIFF header, as whole-slide scanners write it (PS3.10 7.1).
    dual = tmp_path / "dual"
    dual.write_bytes(b"II*\0" + bytes(124) + source.read_bytes()[128:])
    np.testing.assert_array_equal(read_image(dual, channels=1), read_image(bare, channels=1))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("shape", "pick"),
    [
        ((20, 30), lambda a: a),
        ((20, 30, 1), lambda a: a[..., 0]),
        ((1, 20, 30), lambda a: a[0]),
        ((7, 20, 30), lambda a: a[3]),
        ((20, 30, 3), lambda a: a @ LUMA),
        ((3, 20, 30), lambda a: np.moveaxis(a, 0, -1) @ LUMA),
        ((20, 30, 4), lambda a: a[..., :3] @ LUMA),
    ],
)
def test_arrays_of_any_layout(tmp_path, order, shape, pick):
    array = np.asarray(noise(shape, np.uint16), order=order)
    np.save(tmp_path / "a.npy", array)
    image = read_image(tmp_path / "a.npy", channels=1)
    np.testing.assert_allclose(image[0], pick(array) / 65_535, atol=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
def test_frames_of_an_array(tmp_path, order):
    array = np.asarray(noise((6, 20, 30), np.uint8), order=order)
    np.save(tmp_path / "a.npy", array)
    for frame in range(6):
        image = read_image(tmp_path / "a.npy", channels=1, frame=frame)[0]
        np.testing.assert_allclose(image, array[frame] / 255, atol=1e-7)
    assert image_reason(tmp_path / "a.npy", frame=6) == "bad-frame"


def test_array_values(tmp_path):
    path = tmp_path / "a.npy"
    inside = np.random.default_rng(0).random((20, 30))
    for values, expected in (
        (inside, inside),
        (inside.astype(">f4"), inside),
        (inside.astype(np.float16), inside.astype(np.float16)),
        (inside * 3 - 1, by_percentiles(inside * 3 - 1)),
        ((inside * 1e300), by_percentiles(inside * 1e300)),
        ((inside * 5000).astype(np.int16), by_percentiles((inside * 5000).astype(np.int16))),
        (inside > 0.4, inside > 0.4),
    ):
        np.save(path, values)
        np.testing.assert_allclose(read_image(path, channels=1)[0], expected, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path, value):
    array = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    assert read_image(tmp_path / "a.npy", channels=1).shape == (1, 20, 30)
    array[3, 4] = value
    np.save(tmp_path / "a.npy", array)
    assert image_reason(tmp_path / "a.npy") == "not-finite"
    save(tmp_path / "a.tif", array)
    assert image_reason(tmp_path / "a.tif") == "not-finite"


def npy_header(shape, descr="<f8"):
    buffer = io.BytesIO()
    npy_format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npy_header((100_000, 1_000_000)), "unreadable"),
        (npy_header((10_000, 10_000)), "unreadable"),
        (npy_header((20, 30)) + bytes(20 * 30 * 8 - 1), "unreadable"),
        (npy_header((0, 30)), "unreadable"),
        (npy_header((-20, -30)) + bytes(20 * 30 * 8), "unreadable"),
        (npy_header(()) + bytes(8), "unreadable"),
        (npy_header((600,)) + bytes(4800), "unreadable"),
        (npy_header((2, 20, 30, 3)) + bytes(2 * 20 * 30 * 3 * 8), "unreadable"),
        (npy_header((4, 5)) + bytes(160), "too-small"),
        (npy_header((20_000, 8), "|u1") + bytes(160_000), "too-large"),
        (npy_header((20, 30), "|O") + bytes(10_000), "unreadable"),
        (npy_header((20, 30), "<c16") + bytes(10_000), "unreadable"),
        (npy_header((20, 30), "<U4") + bytes(10_000), "unreadable"),
        (b"\x93NUMPY\x09\x00" + bytes(200), "unreadable"),
        (b"\x93NUMPY\x01\x00\xff\xff{" + b"[" * 65_000, "unreadable"),
        (b"\x93NUMPY", "unreadable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_arrays(tmp_path, content, reason):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    assert image_reason(path) == reason


def test_objects_are_never_unpickled(tmp_path):
    fired = tmp_path / "fired"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(fired),)

    np.save(tmp_path / "a.npy", np.full((20, 30), Bomb(), dtype=object), allow_pickle=True)
    assert image_reason(tmp_path / "a.npy") == "unreadable"
    assert reason_of(read_mask, tmp_path / "a.npy") == "unreadable"
    assert not fired.exists()
    # Control: with pickles allowed it does fire.
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert fired.exists()


def png_that_claims(width, height):
    import zlib

    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("width", "height"), [(2**31 - 1, 2**31 - 1), (60_000, 60_000), (16_385, 8), (12_000, 12_000)]
)
def test_decompression_bombs(tmp_path, width, height):
    path = tmp_path / "a.png"
    path.write_bytes(png_that_claims(width, height))
    started = time.monotonic()
    assert image_reason(path) == "too-large"
    assert reason_of(read_mask, path) == "too-large"
    assert time.monotonic() - started < 2


def test_reasons_of_other_files(tmp_path):
    assert image_reason(tmp_path / "absent.png") == "missing"
    (tmp_path / "text.png").write_text("no picture " * 30)
    assert image_reason(tmp_path / "text.png") == "not-an-image"
    (tmp_path / "empty.png").write_bytes(b"")
    assert image_reason(tmp_path / "empty.png") == "not-an-image"
    (tmp_path / "folder.png").mkdir()
    assert image_reason(tmp_path / "folder.png") == "not-an-image"
    content = save(tmp_path / "a.png", noise((20, 30))).read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    assert image_reason(tmp_path / "half.png") == "unreadable"
    assert image_reason(save(tmp_path / "c.png", np.full((20, 30), 9, np.uint8))) == "constant"
    red = np.zeros((20, 30, 3), np.uint8)
    red[..., 0] = 200
    assert image_reason(save(tmp_path / "red.png", red)) == "constant"
    assert image_reason(save(tmp_path / "small.png", noise((7, 30)))) == "too-small"
    with pytest.raises(ConfigurationError):
        read_image(tmp_path / "a.png", channels=4)


def test_text_chunks_never_show(tmp_path, caplog, capfd):
    from PIL.PngImagePlugin import PngInfo

    caplog.set_level("DEBUG")
    info = PngInfo()
    info.add_text("Comment", "ZZQMARKER")
    path = save(tmp_path / "a.png", noise((20, 30)), pnginfo=info)
    save(tmp_path / "a.tif", noise((20, 30)), tiffinfo={270: "ZZQMARKER"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(path, channels=1)
        read_image(tmp_path / "a.tif", channels=1)
        path.write_bytes(path.read_bytes()[:-60])
        assert image_reason(path) == "unreadable"
    assert "ZZQMARKER" not in caplog.text
    assert "ZZQMARKER" not in "".join(capfd.readouterr())
    assert caught == []


@settings(max_examples=100, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "TIFF", "NPY"]))
def test_damage_never_gives_another_exception(tmp_path_factory, data, kind):
    buffer = io.BytesIO()
    if kind == "NPY":
        np.save(buffer, noise((20, 30), np.uint16))
    else:
        Image.fromarray(noise((20, 30))).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for read in (lambda: read_image(path, channels=1), lambda: read_mask(path)):
        try:
            read()
        except ImageError as error:
            reason = error.reason
        else:
            reason = None
        assert reason is None or reason in set(QuarantineReason)


def test_masks_of_class_indices(tmp_path):
    classes = noise((20, 30)) % 5
    for path in (save(tmp_path / "a.png", classes), save(tmp_path / "a.tif", classes)):
        mask = read_mask(path)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, classes)
    for dtype in (np.uint8, np.int64, np.float32):
        np.save(tmp_path / "a.npy", classes.astype(dtype))
        np.testing.assert_array_equal(read_mask(tmp_path / "a.npy"), classes)
    np.testing.assert_array_equal(
        read_mask(save(tmp_path / "16.png", classes.astype(np.uint16))), classes
    )
    same = np.dstack([classes] * 3)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "rgb.png", same)), classes)
    opaque = np.dstack([same, np.full((20, 30), 255, np.uint8)])
    np.testing.assert_array_equal(read_mask(save(tmp_path / "rgba.png", opaque)), classes)


def test_palette_masks_count_by_index(tmp_path):
    classes = noise((20, 30)) % 3
    picture = Image.frombytes("P", (30, 20), classes.tobytes())
    picture.putpalette([0, 0, 0, 255, 0, 0, 10, 20, 30])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), classes)


def test_two_valued_masks(tmp_path):
    drawn = noise((20, 30)) > 100
    for values, expected in (
        (drawn * np.uint8(255), drawn),
        (drawn.astype(np.uint8), drawn),
        (drawn, drawn),
        (np.zeros((20, 30), np.uint8), drawn & False),
        (np.full((20, 30), 255, np.uint8), drawn | True),
    ):
        np.testing.assert_array_equal(read_mask(save(tmp_path / "a.png", values)), expected)
    # 255 beside other classes stays what it is: the "ignore" of many data sets.
    three = np.where(drawn, 255, 1).astype(np.uint8)
    three[0, 0] = 0
    np.testing.assert_array_equal(read_mask(save(tmp_path / "b.png", three)), three)


def test_bad_masks(tmp_path):
    drawn = (noise((20, 30)) > 100) * np.uint8(255)
    colour = np.dstack([drawn, 255 - drawn, drawn])
    assert reason_of(read_mask, save(tmp_path / "a.png", colour)) == "bad-mask"
    assert reason_of(read_mask, save(tmp_path / "a.jpg", drawn)) == "bad-mask"
    deep = save(tmp_path / "b.png", drawn.astype(np.uint16) + 1)
    assert reason_of(read_mask, deep) == "bad-mask"
    for values in (drawn - 1.5, -drawn.astype(np.int16), np.full((20, 30), np.nan)):
        np.save(tmp_path / "a.npy", values)
        assert reason_of(read_mask, tmp_path / "a.npy") == "bad-mask"
    assert reason_of(read_mask, tmp_path / "absent.png") == "missing"
    source = Path(DATA_ROOT) / "test_files" / "MR_small.dcm"
    assert reason_of(read_mask, source) == "bad-mask"


@pytest.mark.parametrize(("height", "width"), [(50, 80), (80, 50), (64, 64), (300, 10), (9, 2)])
@pytest.mark.parametrize("size", [32, 64, 100])
def test_resizing_equals_pillow_and_is_padded_centrally(height, width, size):
    image = np.random.default_rng(0).random((3, height, width), dtype=np.float32)
    square = resize_keeping_aspect(image, size)
    assert square.shape == (3, size, size)
    assert square.dtype == np.float32
    scale = size / max(height, width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    for channel, result in zip(image, square, strict=True):
        resized = Image.fromarray(channel).resize(inner, Image.Resampling.BILINEAR)
        expected = np.zeros((size, size), np.float32)
        left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
        expected[top : top + inner[1], left : left + inner[0]] = np.asarray(resized)
        np.testing.assert_allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize(("height", "width"), [(50, 80), (77, 31), (63, 63), (300, 10), (9, 2)])
def test_masks_are_resized_as_pillow_does_nearest(height, width):
    mask = noise((height, width))
    inner = (
        max(1, round(width * 40 / max(height, width))),
        max(1, round(height * 40 / max(height, width))),
    )
    left, top = (40 - inner[0]) // 2, (40 - inner[1]) // 2
    expected = np.zeros((40, 40), np.uint8)
    resized = Image.fromarray(mask).resize(inner, Image.Resampling.NEAREST)
    expected[top : top + inner[1], left : left + inner[0]] = np.asarray(resized)
    np.testing.assert_array_equal(resize_mask(mask, 40), expected)


def test_resizing_to_the_same_size_changes_nothing():
    image = np.random.default_rng(0).random((1, 40, 40), dtype=np.float32)
    np.testing.assert_array_equal(resize_keeping_aspect(image, 40), image)
    image.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resize_keeping_aspect(image, 20)


def test_downscaling_is_antialiased():
    stripes = np.tile(np.array([0, 1], np.float32), (64, 32))[np.newaxis]
    square = resize_keeping_aspect(stripes, 16)
    assert np.abs(square - 0.5).max() < 0.1  # every second column alone would be 0 or 1


def test_mask_and_box_follow_the_image():
    image = np.zeros((1, 200, 120), np.float32)
    image[0, 40:120, 30:90] = 1
    box = Letterbox.fit(200, 120, 64).to_square(Box(30, 40, 90, 120, "mass"))
    square = resize_keeping_aspect(image, 64)[0]
    mask = resize_mask(image[0].astype(np.uint8) * 3, 64)
    assert set(np.unique(mask)) == {0, 3}
    for found in (square > 0.5, mask == 3):
        rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
        edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(edges - [box.x0, box.y0, box.x1, box.y1]).max() <= 1
    assert box.label == "mass"


sides = st.integers(1, 3000)


@given(height=sides, width=sides, size=st.integers(8, 512), data=st.data())
def test_boxes_map_forth_and_back(height, width, size, data):
    geometry = Letterbox.fit(height, width, size)
    x0, x1 = sorted(data.draw(st.tuples(*[st.floats(0, width)] * 2)))
    y0, y1 = sorted(data.draw(st.tuples(*[st.floats(0, height)] * 2)))
    box = Box(x0, y0, x1, y1, "a")
    square = geometry.to_square(box)
    back = geometry.to_image(square)
    assert back.label == "a"
    np.testing.assert_allclose(
        [back.x0, back.y0, back.x1, back.y1], [x0, y0, x1, y1], rtol=1e-9, atol=1e-6
    )
    # Inside the square, up to the half pixel by which the content is rounded.
    assert min(square.x0, square.y0) >= 0
    assert max(square.x1, square.y1) <= size + 1.0
    assert square.x0 <= square.x1


@settings(deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 70))
def test_resized_values_stay_in_range_and_fill_the_longer_side(height, width, size):
    assume(height * width > 1)
    rng = np.random.default_rng(height * 100 + width)
    square = resize_keeping_aspect(
        rng.random((1, height, width), dtype=np.float32) * 0.9 + 0.1, size
    )
    assert square.min() >= 0
    assert square.max() <= 1
    filled = square[0] > 0
    longer = filled.any(axis=0) if width >= height else filled.any(axis=1)
    assert longer.all()
    mask = resize_mask(np.full((height, width), 5, np.uint8), size)
    np.testing.assert_array_equal(mask == 5, filled)


def test_limits_are_passed_on(tmp_path):
    path = save(tmp_path / "a.png", noise((20, 30)))
    assert image_reason(path, limits=DecodeLimits(max_side=29)) == "too-large"
    assert read_image(path, channels=1, limits=DecodeLimits(max_side=30)).shape == (1, 20, 30)
    with pytest.raises(ImageError, match=r"^sub/a\.png: "):
        read_image(tmp_path / "sub" / "a.png", channels=1, root=tmp_path)
