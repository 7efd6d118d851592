"""Cases that are computed instead of read: the source of a synthetic hospital, and the same cases as files."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from node.data.source import Problem, Scan, Unreadable
from node.data.splits import Part
from node.phantoms.anatomy import HEIGHT, TASKS, Grid, Rng, numbered, shares
from node.phantoms.appearance import APPEARANCES, WHITE
from protos.plan import PhantomSite, Task

FIELD_MM = 192.0  # what the rows and the columns of a volume span


class PhantomSource:
    """The cases of one synthetic hospital, each computed from (task, seed, appearance, size, case number) alone.

    Raises ValueError, in one sentence, when there is no such phantom or `task` does not fit it.
    """

    synthetic = True
    problems: tuple[Problem, ...] = ()

    def __init__(self, phantom: PhantomSite, task: Task) -> None:
        check_phantom(phantom, task)
        self._phantom = phantom
        self._channels = task.channels
        self._soft = task.soft
        self._numbers = {f"case-{number:03d}": number for number in range(phantom.cases)}

    @property
    def names(self) -> tuple[str, ...]:
        """`case-000`, `case-001` and so on, sorted."""
        return tuple(sorted(self._numbers))

    def patient(self, name: str) -> str:
        """Every case is a patient of its own."""
        return name

    def part(self, name: str) -> Part:
        """Raises ValueError, in one sentence: there is no folder that could hold a table."""
        raise ValueError("A synthetic hospital has no table of who trains and who tests; remove split.table.")

    def load(self, name: str) -> Scan:
        """Compute one case: whole numbers from 0 to about 1000; pictures have spacing 1.0, volumes theirs in mm."""
        if name not in self._numbers:
            raise Unreadable(
                f"{name} is no case of this synthetic hospital, which has the {len(self._numbers)} cases from case-000."
            )
        anatomy, appearance = TASKS[self._phantom.task], APPEARANCES[self._phantom.appearance]
        shape: tuple[int, ...] = (self._phantom.size,) * 2
        spacing: tuple[float, ...] = (1.0, 1.0)
        if anatomy.axes == 3:
            slices = round(HEIGHT * self._phantom.size / appearance.slices)
            shape += (slices,)
            spacing = (FIELD_MM / shape[0], FIELD_MM / shape[1], HEIGHT * FIELD_MM / slices)
        number = self._numbers[name]
        layers = anatomy.draw(Grid.of(shape), self._rng("patient", number))
        image = appearance.acquire(layers, self._channels, self._rng("scan", number))
        label = shares(layers, len(anatomy.classes)) if self._soft else numbered(layers)
        return Scan(name, image, label, spacing)

    def fingerprint(self, names: Iterable[str]) -> str:
        """SHA-256 of what these cases are computed from."""
        return hashlib.sha256(f"{self._phantom.model_dump_json()} {' '.join(names)}".encode()).hexdigest()

    def _rng(self, purpose: str, number: int) -> Rng:
        """The draws for one purpose; a patient's do not depend on the grid that the scanner uses."""
        where = f"{self._phantom.task}/{self._phantom.seed}/{self._phantom.appearance}/{number}/{purpose}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(where.encode()).digest()))


def check_phantom(phantom: PhantomSite, task: Task) -> None:
    """Raise ValueError, in one sentence with the key, unless there is such a phantom and `task` fits it.

    Nothing is computed, so that a run can be refused before it begins.
    """
    anatomy = TASKS.get(phantom.task)
    if anatomy is None:
        raise ValueError(f"phantom.task: {phantom.task!r} is none of {', '.join(TASKS)}.")
    if phantom.appearance >= len(APPEARANCES):
        raise ValueError(f"phantom.appearance: {phantom.appearance} is not within 0 to {len(APPEARANCES) - 1}.")
    if len(task.classes) != 1 + len(anatomy.classes):
        raise ValueError(
            f"task.classes: there are {len(task.classes)} names, but the phantom {phantom.task!r} has "
            f"{1 + len(anatomy.classes)} classes: background, {', '.join(anatomy.classes)}."
        )
    if task.dims not in anatomy.dims:
        raise ValueError(
            f"task.dims: {task.dims} does not fit the phantom {phantom.task!r}, which needs "
            f"{' or '.join(map(str, anatomy.dims))}."
        )
    if task.channels not in (1, 3):
        raise ValueError(f"task.channels: {task.channels} is neither 1 (grey) nor 3 (colour), as phantoms are.")


def write_phantoms(
    phantom: PhantomSite, task: Task, folder: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the cases of a synthetic hospital below `folder` as `images/*` and `labels/*` with equal base names.

    Labels hold class numbers, also for soft tasks.

    Volumes are `.nii.gz` (images int16, bit for bit those of PhantomSource; colours lie along a fourth axis), pictures
    are `.png`: 8 bits, so that their images are coarser than PhantomSource's and clipped at 1.2 times white.
    `progress` is called after each case with (cases done, cases in all). Raises ValueError as PhantomSource does, and
    FileExistsError when `folder` holds images or labels already, since old cases would mix with new ones.
    """
    source = PhantomSource(phantom, task.model_copy(update={"soft": False}))
    for kind in ("images", "labels"):
        if (folder / kind).exists():
            raise FileExistsError(f"{folder / kind} is there already; remove it or give another folder.")
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for done, name in enumerate(source.names, start=1):
        scan = source.load(name)
        image = np.moveaxis(scan.image, 0, -1) if task.channels > 1 else scan.image[0]
        write = _write_picture if scan.label.ndim == 2 else _write_volume
        write(folder, scan, image)
        if progress is not None:
            progress(done, len(source.names))


def _write_picture(folder: Path, scan: Scan, image: np.ndarray) -> None:
    from PIL import Image

    # one scale for all images of all hospitals, or brightness would no longer tell them apart
    grey = np.clip(np.rint(image * (255 / (1.2 * WHITE))), 0, 255).astype(np.uint8)
    Image.fromarray(grey).save(folder / "images" / f"{scan.name}.png")
    Image.fromarray(scan.label).save(folder / "labels" / f"{scan.name}.png")


def _write_volume(folder: Path, scan: Scan, image: np.ndarray) -> None:
    import nibabel

    affine = np.diag([*scan.spacing, 1.0])
    for kind, array in (("images", image.astype(np.int16)), ("labels", scan.label)):
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / kind / f"{scan.name}.nii.gz")
