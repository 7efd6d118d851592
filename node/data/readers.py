"""From the files of one case to a Scan: channels are put together, label values become class numbers, grids agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.data.decoding import VOLUMES, base_and_suffix, decoding, shown
from node.data.pictures import read_picture, read_picture_label, to_channels
from node.data.source import Label, Scan, Unreadable
from node.data.volumes import Volume, read_volume, read_volume_label, same_grid

ROUNDING = 1e-4  # a scale factor in a header leaves errors below this


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case: one image file per channel, or one for all.

    `modalities` > 1 says that a volume's channels lie along its fourth axis.
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    modalities: int = 1

    @property
    def volume(self) -> bool:
        """Whether the case is a volume, not a picture."""
        return base_and_suffix(self.images[0].name)[1] in VOLUMES


@dataclass(frozen=True)
class LabelValues:
    """How stored label values become class numbers.

    `names`: the task's classes, background first; `given`: value -> class name as the site's settings say it, or
    None when values are class numbers; `soft`: shares in [0, 1] are wanted instead. Raises ValueError when `given`
    names a class that the task has not.
    """

    names: Sequence[str]
    given: Mapping[int, str] | None = None
    soft: bool = False

    def __post_init__(self) -> None:
        for value, name in (self.given or {}).items():
            if name not in self.names:
                raise ValueError(
                    f"labels: gives value {value} the class {name!r}, which is no class of the task; "
                    f"use one of {', '.join(self.names)}."
                )

    @property
    def numbers(self) -> dict[int, int]:
        """Value -> class number; 0 is background unless the settings say otherwise."""
        if self.given is None:
            return {number: number for number in range(len(self.names))}
        return {0: 0} | {value: self.names.index(name) for value, name in self.given.items()}

    def apply(self, raw: NDArray[Any], path: Path) -> Label:
        """Turn stored values [*space] into a label as Scan has it; raises Unreadable for any other value.

        For soft tasks class numbers become shares of 0 and 1; fractions are taken where there is one structure.
        """
        if not self.soft:
            return self._numbered(raw, path)
        fractions = raw.dtype.kind == "f" and self.numbers == {0: 0, 1: 1}
        if fractions and raw.min() >= -ROUNDING and raw.max() <= 1 + ROUNDING:
            return raw[None].clip(0, 1).astype(np.float32)
        numbered = self._numbered(raw, path)
        return np.stack([numbered == number for number in range(1, len(self.names))]).astype(np.float32)

    def _numbered(self, raw: NDArray[Any], path: Path) -> NDArray[np.uint8]:
        if raw.dtype.kind == "f":
            raw = self._whole(raw, path)
        numbered = np.zeros(raw.shape, np.uint8)
        known = np.zeros(raw.shape, bool)
        low, high = raw.min(), raw.max()
        for value, number in self.numbers.items():
            if low <= value <= high:
                hit = raw == value
                numbered[hit] = number
                known |= hit
        if not known.all():
            raise Unreadable(
                f"{shown(path)} holds the value {int(raw[~known][0])}, {self._remedy(int(raw[~known][0]))}"
            )
        return numbered

    def _whole(self, raw: NDArray[Any], path: Path) -> NDArray[Any]:
        if not np.isfinite(raw).all():
            raise Unreadable(f"{shown(path)} has values that are NaN or infinite; labels are finite numbers.")
        nearest: NDArray[Any] = np.rint(raw)
        if (odd := np.abs(raw - nearest) > ROUNDING).any():
            remedy = (
                "fractions are taken from 0 to 1, and only where 1 is the one structure of the task"
                if self.soft
                else "save class numbers and resample labels by nearest neighbour, or set task.soft"
            )
            raise Unreadable(f"{shown(path)} holds {float(raw[odd][0]):g}, which is no whole number; {remedy}.")
        return nearest

    def _remedy(self, value: int) -> str:
        example = f"{{{value}: {self.names[-1]}}}"  # not the background: a structure would be lost in silence
        if self.given is not None:
            return f"which this site's labels: does not name; add it there, for example {example}."
        return (
            f"but class numbers end at {len(self.names) - 1} ({self.names[-1]}); "
            f"say what the site's values mean, for example labels: {example}."
        )


def read_case(case: CaseFiles, channels: int | None, values: LabelValues) -> Scan:
    """Decode one case onto its native grid, with `channels` channels (None: as many as are stored).

    Raises Unreadable, also when image and label do not lie on the same grid.
    """
    with decoding(case.images[0]):  # what goes wrong between the files, memory for one, is the case's fault too
        return _read_volumes(case, channels, values) if case.volume else _read_pictures(case, channels, values)


def _read_pictures(case: CaseFiles, channels: int | None, values: LabelValues) -> Scan:
    parts = [read_picture(path) for path in case.images]
    raw = read_picture_label(case.label)
    for part, path in zip(parts, case.images, strict=True):
        _check_shape(part.shape[1:], path, raw.shape, case.label)
    image = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if channels is not None:
        image = to_channels(image, channels, case.images[0])
    return Scan(case.name, image, values.apply(raw, case.label), (1.0, 1.0))


def _read_volumes(case: CaseFiles, channels: int | None, values: LabelValues) -> Scan:
    parts = [read_volume(path, case.modalities) for path in case.images]
    label = read_volume_label(case.label)
    for part, path in zip(parts, case.images, strict=True):
        _check_grid(part, path, label, case.label)
    image = parts[0].data if len(parts) == 1 else np.concatenate([part.data for part in parts])
    if channels is not None and len(image) != channels:
        raise Unreadable(
            f"{shown(case.images[0])} has {len(image)} channels, but the task takes {channels}; "
            "set task.channels or give each case as many images."
        )
    return Scan(case.name, image, values.apply(label.data[0], case.label), parts[0].spacing)


def _check_grid(image: Volume, image_path: Path, label: Volume, label_path: Path) -> None:
    _check_shape(image.data.shape[1:], image_path, label.data.shape[1:], label_path)
    if not same_grid(image, label):
        raise Unreadable(
            f"{shown(label_path)} lies elsewhere in space than {shown(image_path)}; "
            "resample the label onto the image's grid, or correct the header that is wrong."
        )


def _check_shape(image: tuple[int, ...], image_path: Path, label: tuple[int, ...], label_path: Path) -> None:
    if image != label:
        raise Unreadable(
            f"{shown(label_path)} has the shape {' x '.join(map(str, label))}, but {shown(image_path)} has "
            f"{' x '.join(map(str, image))}; give each image the label that was drawn on it."
        )


def stored_channels(case: CaseFiles) -> int:
    """How many channels the images of a case hold together; raises Unreadable."""
    if case.volume:
        return sum(len(read_volume(path, case.modalities).data) for path in case.images)
    return sum(len(read_picture(path)) for path in case.images)
