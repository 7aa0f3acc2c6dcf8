"""What DICOM's stored values mean: modality LUT, VOI LUT or window, palette, polarity.

The arithmetic is pydicom's (``pydicom.pixels.processing``). Two things are added here. Grey images
are mapped through a table of the stored values that occur, not pixel by pixel, which for large
images is an order of magnitude faster and gives the same numbers. And lookup tables whose
descriptor would make pydicom 3.0 wrap around (8-bit entries with more than 256 of them, 9 to 15
bits) or read the wrong byte order are rewritten in memory to 16 bits in the machine's order.
"""

from __future__ import annotations

import struct
import sys
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi,
    apply_windowing,
)

from fedmed.data.intensity import scale_between, scale_by_percentiles
from fedmed.data.quarantine import QuarantineReason
from fedmed.errors import ImageError

_PALETTES = ("Red", "Green", "Blue")
_FRAME_KEYWORDS = {
    # Macros of the functional groups, PS3.3 C.7.6.16.2.9 and C.7.6.16.2.10.
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
}
INTENSITY_KEYWORDS = (
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _PALETTES),
    *(f"{colour}PaletteColorLookupTableData" for colour in _PALETTES),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _PALETTES),
)
# What a malformed VOI LUT or window makes pydicom raise; such a one counts as absent.
_MALFORMED = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    struct.error,
)


def grey_image(stored: NDArray[Any], header: Dataset, index: int = 0) -> NDArray[np.float32]:
    """Grey values of one frame.

    Args:
        stored: [H, W] stored values, integers or floats.
        header: the data set; the values of its functional groups are copied to its top level.
        index: the frame's index, for the functional groups of enhanced objects.

    Returns:
        [H, W] in [0, 1]: 0 is black, whatever the photometric interpretation.

    Raises:
        ImageError: ``constant`` or ``not-finite``.
    """
    _apply_functional_groups(header, index)
    if not np.isfinite(stored).all():
        raise ImageError(QuarantineReason.NOT_FINITE, "NaN or infinity among the pixel values")
    values, lookup, weights = _occurring(stored, header)
    modality = _modality(values, header)
    image = _shown(modality, header)
    if image is None or not _has_contrast(image, weights):
        image = scale_by_percentiles(modality, weights)
    if header.PhotometricInterpretation == "MONOCHROME1":
        image = 1.0 - image
    return image if lookup is None else image[lookup]


def palette_image(stored: NDArray[Any], header: Dataset) -> NDArray[np.float32]:
    """Colours of a PALETTE COLOR frame [H, W] as [H, W, 3] in [0, 1] (PS3.3 C.7.6.3.1.5)."""
    bits = int(header.RedPaletteColorLookupTableDescriptor[2])
    if "RedPaletteColorLookupTableData" in header:
        _widen_palettes(header)
    coloured = apply_color_lut(stored.astype(np.int32, copy=False), header)[..., :3]
    return scale_between(coloured, 0, _full_scale(bits, coloured))


def colour_image(stored: NDArray[Any], bits_stored: int) -> NDArray[np.float32]:
    """RGB samples [H, W, 3] scaled to [0, 1] by their number of bits."""
    return scale_between(stored, 0, _full_scale(bits_stored, stored))


def _full_scale(bits: int, values: NDArray[Any]) -> float:
    """Largest value of ``bits`` bits, or of the data type where the values pass it."""
    largest = float(2**bits - 1)
    return largest if values.max() <= largest else float(np.iinfo(values.dtype).max)


def _apply_functional_groups(header: Dataset, index: int) -> None:
    """Copy rescale and window of one frame of an enhanced object to the top level."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*shared[:1], *frames[index : index + 1]):
        for macro, keywords in _FRAME_KEYWORDS.items():
            for item in (group.get(macro) or [])[:1]:
                for keyword in keywords:
                    if keyword in item:
                        setattr(header, keyword, item[keyword].value)


def _modality(values: NDArray[Any], header: Dataset) -> NDArray[Any]:
    """Apply the modality LUT or rescale to stored values."""
    for item in (header.get("ModalityLUTSequence") or [])[:1]:
        _widen_lut(item)
    # Wider than any table, so that its indices do not wrap around.
    wide = values.astype(np.int64) if values.dtype.kind in "ui" else values
    modality: NDArray[Any] = apply_modality_lut(wide, header)
    if not np.isfinite(modality).all():
        raise ImageError(QuarantineReason.NOT_FINITE, "its rescale slope or intercept is no number")
    return modality


def _shown(modality: NDArray[Any], header: Dataset) -> NDArray[np.float32] | None:
    """Apply the VOI LUT, else the first window; None where there is no valid one."""
    with suppress(*_MALFORMED):
        if header.get("VOILUTSequence"):
            return _through_voi_lut(modality, header)
    with suppress(*_MALFORMED):
        if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
            return _through_window(modality, header)
    return None


def _through_voi_lut(modality: NDArray[Any], header: Dataset) -> NDArray[np.float32]:
    """Apply the first VOI LUT; [0, 1] spans the values of the table."""
    item = header.VOILUTSequence[0]
    _widen_lut(item)
    first = int(item.LUTDescriptor[1])
    entries = int(item.LUTDescriptor[0]) or 2**16
    table = apply_voi(np.arange(first, first + entries), header)
    # Clipped first: pydicom takes the index modulo 2^16 before it clips it.
    inputs = np.clip(np.rint(modality).astype(np.int64), first, first + entries - 1)
    return scale_between(apply_voi(inputs, header), float(table.min()), float(table.max()))


def _through_window(modality: NDArray[Any], header: Dataset) -> NDArray[np.float32]:
    """Apply the first window; [0, 1] spans the window."""
    # The two infinities come out as the ends of the output range, whatever the function is.
    ends = np.array([-np.inf, np.inf])
    values = np.concatenate([ends, modality.ravel().astype(np.float64)])
    with np.errstate(over="ignore", invalid="ignore"):
        windowed = apply_windowing(values, header)
    low, high = windowed[:2]
    if low == high or not np.isfinite(windowed).all():
        raise ValueError("the window has no output range")
    fraction = (windowed[2:] - low) / (high - low)
    return scale_between(fraction, 0.0, 1.0).reshape(modality.shape)


def _occurring(
    stored: NDArray[Any], header: Dataset
) -> tuple[NDArray[Any], NDArray[np.intp] | None, NDArray[np.intp] | None]:
    """Reduce an image of integers to the range of values between its extremes.

    Returns:
        The values to map; the index of each pixel among them, None where they are the pixels
        themselves; and how often each value counts, None for once.
    """
    low, high = stored.min(), stored.max()
    if stored.dtype.kind not in "ui" or int(high) - int(low) >= stored.size:
        padding = _padding(stored, header)
        return stored, None, None if padding is None else (~padding).astype(np.intp)
    values = np.arange(int(low), int(high) + 1)
    lookup = np.subtract(stored, low, dtype=np.intp, casting="unsafe")
    weights = np.bincount(lookup.ravel(), minlength=values.size)
    padding = _padding(values, header)
    if padding is not None:
        weights[padding] = 0
    return values, lookup, weights


def _has_contrast(image: NDArray[np.float32], weights: NDArray[np.intp] | None) -> bool:
    """Tell whether the values that count differ."""
    counted = image if weights is None or not weights.any() else image[weights > 0]
    return bool(counted.min() < counted.max())


def _padding(values: NDArray[Any], header: Dataset) -> NDArray[np.bool_] | None:
    """Mark values that are padding outside the field of view (PS3.3 C.7.5.1.1.2)."""
    value = header.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = header.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    padding: NDArray[np.bool_] = (values >= low) & (values <= high)
    return padding


def _widen_lut(item: Dataset) -> None:
    """Declare a modality or VOI LUT as one of 16 bits; its entries are the same numbers."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    if bits != 16:
        item.LUTDescriptor = [entries, first, 16]


def _widen_palettes(header: Dataset) -> None:
    """Rewrite the palettes to 16 bits in the machine's byte order."""
    little = bool(header.original_encoding[1])
    entries = int(header.RedPaletteColorLookupTableDescriptor[0]) or 2**16
    for colour in _PALETTES:
        element = header[f"{colour}PaletteColorLookupTableData"]
        data = bytes(element.value)
        order = "<" if little else ">"
        wide = len(data) >= 2 * entries
        table = np.frombuffer(data, dtype=f"{order}u2" if wide else np.uint8)[:entries]
        element.value = table.astype(f"{'<' if sys.byteorder == 'little' else '>'}u2").tobytes()
