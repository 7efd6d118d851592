"""Volumes: NIfTI-1 and NIfTI-2 as arrays in canonical (right, anterior, superior) orientation; nibabel decodes."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from node.data.decoding import MAX_VOXELS, decoding, shown
from node.data.source import Unreadable

MILLIMETRES = {"meter": 1000.0, "micron": 0.001}  # every other unit, and none, means mm
TOLERANCE = 0.1  # two grids are the same when no corner is farther apart than this share of the finest spacing


@dataclass(frozen=True)
class Volume:
    """A decoded NIfTI file: `data` [channels, right, anterior, superior], `affine` [4, 4] to mm, `spacing` in mm."""

    data: NDArray[Any]
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]


def read_volume(path: Path, modalities: int = 1) -> Volume:
    """Decode an image, `data` float32; `modalities` > 1 says that so many channels lie along its fourth axis.

    Raises Unreadable.
    """
    with decoding(path):
        volume = _decode(path, modalities, np.dtype(np.float32))
        if not (finite := np.isfinite(volume.data)).all():
            raise Unreadable(
                f"{shown(path)} has {finite.size - np.count_nonzero(finite)} voxels that are NaN or infinite; "
                "replace them with a number."
            )
        return volume


def read_volume_label(path: Path) -> Volume:
    """Decode a label: `data` [1, ...] with the stored values in their own dtype. Raises Unreadable."""
    with decoding(path):
        return _decode(path, 1, None)


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes lie on the same voxels in space."""
    return a.data.shape[1:] == b.data.shape[1:] and _agree(a.affine, b.affine, a.data.shape[1:])


def _decode(path: Path, modalities: int, dtype: np.dtype[Any] | None) -> Volume:
    # without mmap a file that shrinks while it is read cannot end the process
    image = nibabel.load(path, mmap=False)
    if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a subclass
        raise Unreadable(f"{shown(path)} is no single NIfTI file; convert it to .nii.gz.")
    if image.get_data_dtype().kind not in "iuf":
        raise Unreadable(
            f"{shown(path)} holds colour or complex voxels ({image.get_data_dtype()}); save one number per voxel."
        )
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:  # SPM and others write volumes as [x, y, z, 1]
        shape = shape[:-1]
    if len(shape) != 3 and not (len(shape) == 4 and shape[3] == modalities):
        raise Unreadable(
            f"{shown(path)} is {len(shape)}-dimensional ({_times(image.shape)}); give one 3-dimensional file per case."
        )
    if not 0 < math.prod(shape) <= MAX_VOXELS:
        raise Unreadable(f"{shown(path)} has {_times(shape)} voxels; it must have some, and at most {MAX_VOXELS}.")
    affine = _affine(path, image, shape[:3])
    data = np.asanyarray(image.dataobj) if dtype is None else np.asarray(image.dataobj, dtype=dtype)
    turned = io_orientation(affine)
    affine = affine @ inv_ornt_aff(turned, shape[:3])
    data = apply_orientation(data.reshape(shape), turned)
    return Volume(
        data=np.ascontiguousarray(data[None] if data.ndim == 3 else np.moveaxis(data, 3, 0)),
        affine=affine,
        spacing=tuple(float(f"{size:.6g}") for size in voxel_sizes(affine)),  # headers hold float32
    )


def _affine(path: Path, image: nibabel.Nifti1Image, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine to mm; the header's ways to say it (sform, qform, pixdim) must agree where they are given."""
    header = image.header
    affine = np.array(image.affine, dtype=np.float64)
    sizes = voxel_sizes(affine)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(sizes):
        raise Unreadable(f"{shown(path)} has a header without valid voxel sizes or orientation; export it again.")
    qform, has_qform = header.get_qform(coded=True)
    _, has_sform = header.get_sform(coded=True)
    if (has_qform and has_sform and not _agree(affine, qform, shape)) or not np.allclose(
        sizes, header.get_zooms()[:3], rtol=0.01
    ):
        raise Unreadable(
            f"{shown(path)} states two different positions in space (sform against qform or voxel sizes); "
            "find out which is right and write it to both."
        )
    affine[:3] *= MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    return affine


def _agree(a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...]) -> bool:
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shape))])
    apart = np.linalg.norm((corners @ (a - b).T)[:, :3], axis=1).max()
    return bool(apart <= TOLERANCE * voxel_sizes(a).min())


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
