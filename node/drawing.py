"""Pictures of cases as arrays and PNG: grey or colour, labels in colours, of volumes one slice. No PyTorch here."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

COLOURS = ((230, 75, 53), (77, 187, 213), (0, 160, 135), (243, 155, 127), (132, 145, 180), (145, 209, 194))
SLICED = {"sagittal": -3, "coronal": -2, "axial": -1}  # the axis that slices of a plane follow each other along


def as_colours(image: NDArray[np.floating], low: float, high: float) -> NDArray[np.floating]:
    """[channels, rows, columns] as [rows, columns, 3], `low` at 0 and `high` at 255; the first channel unless 3."""
    grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.moveaxis(grey if len(grey) == 3 else np.repeat(grey[:1], 3, axis=0), 0, -1)


def surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What a mask loses when it is eroded by one voxel."""
    # MONAI's get_mask_edges erodes just so, but looks for cuCIM on the disk at every call, which takes longer
    edge: NDArray[np.bool_] = mask ^ ndimage.binary_erosion(mask)
    return edge


def fullest(label: NDArray[np.uint8], plane: str) -> tuple[int, int]:
    """Of a volume [*space]: the axis that slices of the plane follow each other along, and the fullest slice on it."""
    axis = SLICED[plane] % label.ndim
    others = tuple(other for other in range(label.ndim) if other != axis)
    return axis, int((label > 0).sum(axis=others).argmax())


def tinted(
    canvas: NDArray[np.floating], label: NDArray[np.uint8], classes: int, *, filled: bool
) -> NDArray[np.floating]:
    """The canvas [rows, columns, 3], each structure of `label` [rows, columns] in its colour, filled or outlined."""
    drawn = canvas.copy()
    for number in range(1, classes):
        colour = np.array(COLOURS[(number - 1) % len(COLOURS)])
        inside = label == number
        if filled:
            drawn[inside] = 0.6 * drawn[inside] + 0.4 * colour
        else:
            drawn[surface(inside)] = colour
    return drawn


def enlarged(canvas: NDArray[np.floating], least: int) -> NDArray[np.floating]:
    """[rows, columns, 3] with every pixel repeated until the picture is `least` pixels wide."""
    times = max(1, -(-least // max(canvas.shape[1], 1)))
    return np.repeat(np.repeat(canvas, times, axis=0), times, axis=1)


def png(canvas: NDArray[np.floating]) -> bytes:
    """[rows, columns, 3] from 0 to 255 as PNG."""
    written = io.BytesIO()
    Image.fromarray(canvas.astype(np.uint8)).save(written, format="PNG")
    return written.getvalue()
