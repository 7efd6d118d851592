"""Scores of a site's cases: Dice (DSC) and average surface distance (ASD) per case and foreground class.

ASD is the mean of the two directed mean surface distances, in mm (pixels for pictures). MONAI's `symmetric=True` pools
the distances of both directions instead, so that the larger surface counts more. A surface is what a mask loses when
it is eroded by one voxel, as in MONAI.

Empty masks: a class that neither the truth nor the prediction holds scores DSC 1 and ASD 0 and is counted in
`both_empty`; one that only one of them holds scores DSC 0 and, as ASD, the diagonal of the image, and is counted in
`penalised`. Nothing is left out of a mean. A case's value is the mean over the foreground classes, a site's the mean
over its cases.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from monai.metrics.utils import get_surface_distance
from numpy.typing import NDArray
from scipy import ndimage

from node.data.samples import LogitsFn, TestCase
from node.data.site import SiteData
from node.drawing import as_colours, fullest, png, surface, tinted
from protos.declaration import Bound
from protos.plan import Task


@dataclass(frozen=True)
class CaseScore:
    """Scores of one case; `dsc` and `asd` hold one value per foreground class, class 1 first."""

    dsc: tuple[float, ...]
    asd: tuple[float, ...]
    both_empty: int
    penalised: int

    @property
    def mean_dsc(self) -> float:
        """Mean over the foreground classes."""
        return float(np.mean(self.dsc))

    @property
    def mean_asd(self) -> float:
        """Mean over the foreground classes, in mm."""
        return float(np.mean(self.asd))


@dataclass(frozen=True)
class SiteScore:
    """Scores of all scored cases of a site. `cases`, by the cases' names, stays at the node; `metrics` may leave."""

    cases: Mapping[str, CaseScore]

    def metrics(self) -> dict[str, int | float]:
        """Aggregates over the cases, exactly those that declared_metrics names."""
        scores = list(self.cases.values())
        dsc = np.array([score.dsc for score in scores])
        asd = np.array([score.asd for score in scores])
        metrics: dict[str, int | float] = {"dsc": float(dsc.mean()), "asd": float(asd.mean())}
        for number in range(dsc.shape[1]):
            metrics[f"dsc.{number + 1}"] = float(dsc[:, number].mean())
            metrics[f"asd.{number + 1}"] = float(asd[:, number].mean())
        metrics["cases"] = len(scores)
        metrics["both_empty"] = sum(score.both_empty for score in scores)
        metrics["penalised"] = sum(score.penalised for score in scores)
        return metrics


def declared_metrics(task: Task) -> Mapping[str, Bound]:
    """The scalars that scoring a site sends, and the range of each."""
    suffixes = ["", *(f".{number}" for number in range(1, len(task.classes)))]
    bounds = {f"dsc{suffix}": Bound(0, 1) for suffix in suffixes}
    bounds |= {f"asd{suffix}": Bound(0, 1e5) for suffix in suffixes}
    return bounds | {name: Bound(0, 1e7) for name in ("cases", "both_empty", "penalised")}


# A case, its segmentation (uint8 [*space]) and its score.
Keep = Callable[[TestCase, NDArray[np.uint8], CaseScore], None]


def score_site(
    data: SiteData,
    logits_fn: LogitsFn,
    progress: Callable[[int, int], None] | None = None,
    keep: Keep | None = None,
) -> SiteScore:
    """Segment and score every case of the part that the plan scores; raises node.data.site.EmptySite if there is none.

    `progress` is called after every case with the cases done and those there are, `keep` with the case.
    """
    cases: dict[str, CaseScore] = {}
    for case in data.scored_cases():
        prediction = case.predict(logits_fn)
        cases[case.name] = score_case(prediction, case.truth, case.spacing, len(case.task.classes))
        if keep is not None:
            keep(case, prediction, cases[case.name])
        if progress is not None:
            progress(len(cases), data.counts()[data.scored])
    return SiteScore(cases)


def score_case(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], spacing: tuple[float, ...], classes: int
) -> CaseScore:
    """Compare two segmentations, uint8 [*space] below `classes` (background included), at `spacing` mm per axis."""
    if prediction.shape != truth.shape:
        raise ValueError(f"The prediction has shape {prediction.shape} and the truth {truth.shape}; they must agree.")
    pairs = truth.ravel().astype(np.intp) * classes + prediction.ravel()
    confusion = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    # bounding boxes of all classes in one pass: surfaces are looked for there only
    boxes = [ndimage.find_objects(mask, max_label=classes - 1) for mask in (prediction, truth)]
    dsc, asd, both_empty, penalised = [], [], 0, 0
    for number in range(1, classes):
        held = int(confusion[number, :].sum()), int(confusion[:, number].sum())
        if not any(held):
            both_empty += 1
            dsc.append(1.0)
            asd.append(0.0)
        elif not all(held):
            penalised += 1
            dsc.append(0.0)
            asd.append(float(np.linalg.norm(np.multiply(truth.shape, spacing))))
        else:
            dsc.append(2 * int(confusion[number, number]) / sum(held))
            box = _union(boxes[0][number - 1], boxes[1][number - 1])
            asd.append(surface_distance(prediction[box] == number, truth[box] == number, spacing))
    return CaseScore(tuple(dsc), tuple(asd), both_empty, penalised)


def surface_distance(one: NDArray[np.bool_], other: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    """Mean of both directed mean distances between the surfaces of two masks, neither empty, in mm."""
    edges = surface(one), surface(other)
    there = get_surface_distance(edges[0], edges[1], spacing=spacing)
    back = get_surface_distance(edges[1], edges[0], spacing=spacing)
    return (float(np.mean(there, dtype=np.float64)) + float(np.mean(back, dtype=np.float64))) / 2


def overlay_png(case: TestCase, prediction: NDArray[np.uint8]) -> bytes:
    """Draw a synthetic case as PNG: the prediction tinted, the truth outlined; of a volume, the fullest slice.

    Raises ValueError for a case that is not synthetic, whose picture must not leave the node.
    """
    if not case.synthetic:
        raise ValueError("Only synthetic cases may be drawn; this one is a patient's.")
    image, truth = case.picture(), case.truth
    if truth.ndim == 3:
        axis, place = fullest(truth, case.task.plane)
        image, truth, prediction = (np.take(one, place, axis=axis - 3) for one in (image, truth, prediction))
    canvas = as_colours(image, *np.percentile(image, (1, 99)))
    classes = len(case.task.classes)
    return png(tinted(tinted(canvas, prediction, classes, filled=True), truth, classes, filled=False))


def _union(one: tuple[slice, ...], other: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
