"""Pictures: PNG, JPEG and TIFF as arrays. Pillow decodes, tifffile where TIFF holds more than Pillow can."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from node.data.decoding import JPEGS, MAX_PIXELS, TIFFS, base_and_suffix, decoding, shown
from node.data.source import Unreadable

ALPHA = (1, 2)  # TIFF's ExtraSamples: associated and unassociated alpha
MINISWHITE, PALETTE = 0, 3  # TIFF's PhotometricInterpretation
ORIENTATION = 274

Pixels = NDArray[Any]


def read_picture(path: Path) -> NDArray[np.float32]:
    """Decode a picture: float32 [channels, rows, columns], upright, alpha dropped, palettes resolved.

    Values are as stored (0..255, 0..65535, or floats). Raises Unreadable.
    """
    with decoding(path):
        pixels = _decode(path, indices=False)
        if not np.isfinite(pixels).all():
            raise Unreadable(f"{shown(path)} has pixels that are NaN or infinite; replace them with a number.")
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0), dtype=np.float32)


def read_picture_label(path: Path) -> Pixels:
    """Decode a label picture: its stored values [rows, columns], upright; a palette gives its indices.

    Raises Unreadable, also for colours and for JPEG, which does not keep values.
    """
    if base_and_suffix(path.name)[1] in JPEGS:
        raise Unreadable(f"{shown(path)} is a JPEG, which blurs class borders; save labels as PNG.")
    with decoding(path):
        pixels = _decode(path, indices=True)
        if any((pixels[..., 0] != pixels[..., channel]).any() for channel in range(1, pixels.shape[-1])):
            raise Unreadable(f"{shown(path)} is coloured; save labels as grey PNG whose values are class numbers.")
        return np.ascontiguousarray(pixels[..., 0])


def to_channels(image: NDArray[np.float32], channels: int, path: Path) -> NDArray[np.float32]:
    """Bring [c, rows, columns] to the task's channels: grey is repeated, colour becomes luma; else Unreadable."""
    found = image.shape[0]
    if found == channels:
        return image
    if (found, channels) == (1, 3):
        return np.repeat(image, 3, axis=0)
    if (found, channels) == (3, 1):
        luma = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow's and OpenCV's grey
        return np.tensordot(luma, image, axes=1)[None].astype(np.float32)
    raise Unreadable(
        f"{shown(path)} has {found} channels, but the task takes {channels}; set task.channels or convert the picture."
    )


def _decode(path: Path, indices: bool) -> Pixels:
    """[rows, columns, channels] in the stored dtype, some pixels of real numbers."""
    pixels = _with_tifffile(path, indices) if base_and_suffix(path.name)[1] in TIFFS else _with_pillow(path, indices)
    if pixels.dtype.kind not in "biuf" or not pixels.size:
        raise Unreadable(f"{shown(path)} holds no pixels of real numbers ({pixels.dtype}); save it again as PNG.")
    return pixels


def _with_pillow(path: Path, indices: bool) -> Pixels:
    with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as opened:
        _check_size(path, opened.width * opened.height)
        # an MPO is a JPEG of a telephone with a second picture behind the first
        frames = getattr(opened, "n_frames", 1)
        if frames > 1 and opened.format != "MPO":
            raise Unreadable(f"{shown(path)} holds {frames} pictures; save each as a file of its own.")
        picture = ImageOps.exif_transpose(opened)
        if not indices and picture.mode in ("1", "P", "PA"):
            picture = picture.convert("L" if picture.mode == "1" else "RGB")
        elif picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            picture = picture.convert("RGB")
        pixels = np.asarray(picture)
        alpha = picture.mode in ("LA", "PA", "RGBA", "La", "RGBa", "RGBX")
    if pixels.ndim == 2:
        return pixels[..., None]
    return pixels[..., :-1] if alpha else pixels


def _with_tifffile(path: Path, indices: bool) -> Pixels:
    with tifffile.TiffFile(path) as file:
        series, page = file.series[0], file.pages[0]
        if page.photometric == PALETTE and not indices:
            return _with_pillow(path, indices)
        if len(file.series) > 1 or series.axes not in ("YX", "YXS", "SYX", "CYX"):
            raise Unreadable(
                f"{shown(path)} is a stack of pictures (axes {series.axes}, {len(file.series)} series); "
                "save each picture as a file of its own."
            )
        _check_size(path, series.size)
        try:
            pixels = np.asarray(series.asarray())
        except ValueError as error:  # LZW, JPEG and others need a package that Pillow does without
            if "imagecodecs" not in str(error):
                raise
            return _with_pillow(path, indices)
        extra = sum(kind in ALPHA for kind in page.extrasamples)
        orientation = int(page.tags.valueof(ORIENTATION, 1))
        inverted = page.photometric == MINISWHITE
    if inverted and pixels.dtype.kind in "bu":
        pixels = ~pixels  # for unsigned integers: the largest value minus the value
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif series.axes != "YXS":
        pixels = np.moveaxis(pixels, 0, -1)
    return _upright(pixels[..., : pixels.shape[-1] - extra], orientation)


def _check_size(path: Path, pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise Unreadable(f"{shown(path)} has {pixels} pixels, more than {MAX_PIXELS}; crop or reduce it.")


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo EXIF's orientation of [rows, columns, channels]: 5 to 8 exchange rows and columns, then come mirrors."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
