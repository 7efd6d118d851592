"""The bodies of synthetic patients: which tissue lies where, and which of it a task wants segmented.

One anatomy model per task, the same at every hospital. Lengths are in half fields of view, so that a patient's shape
does not depend on the grid; coordinates run from -1 to 1 along the rows and columns of a picture.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Vector = Sequence[float] | Array  # one number per axis
Rng = np.random.Generator

# The volume's field of view over the picture's: the head is shorter than it is long.
HEIGHT = 0.75


@dataclass(frozen=True)
class Layer:
    """One structure: `cover` is float64 [*space] in 0..1, the part of each pixel or voxel that it fills.

    `brightness` (0..1) is the tissue's at the reference hospital, `label` its class number (0: background).
    """

    cover: Array
    brightness: float
    label: int = 0


@dataclass(frozen=True)
class PhantomTask:
    """An anatomy model: `classes` are the structures' names without the background.

    `axes` is the number of axes of its images, `dims` the values of `task.dims` that can use them (a volume may be
    learnt slice by slice). `draw(grid, rng)` returns the layers of one patient, from the back to the front.
    """

    classes: tuple[str, ...]
    axes: int
    dims: tuple[int, ...]
    draw: Callable[["Grid", Rng], list[Layer]]


@dataclass(frozen=True)
class Grid:
    """Where pixels or voxels have their centres: `points` is float64 [axes, *space], `step` the distance per axis."""

    points: Array
    step: tuple[float, ...]

    @classmethod
    def of(cls, shape: Sequence[int]) -> "Grid":
        """The grid of a picture or volume of `shape`; a volume's third axis covers less."""
        extents = (1.0, 1.0, HEIGHT)[: len(shape)]
        axes = [extent * ((2 * np.arange(n) + 1) / n - 1) for extent, n in zip(extents, shape, strict=True)]
        steps = tuple(2 * extent / n for extent, n in zip(extents, shape, strict=True))
        return cls(np.stack(np.meshgrid(*axes, indexing="ij")), steps)

    def warped(self, rng: Rng, amount: float) -> "Grid":
        """The grid bent by four smooth waves, each of amplitude up to `amount`."""
        points = self.points.copy()
        for _ in range(4):
            wave = rng.normal(size=len(points))
            wave *= rng.uniform(1.5, 4.0) / np.sqrt((wave**2).sum())
            phase = rng.uniform(0, 2 * np.pi)
            ripple = np.sin(sum(k * x for k, x in zip(wave, self.points, strict=True)) + phase)
            for axis, shift in enumerate(rng.uniform(-amount, amount, size=len(points))):
                points[axis] += shift * ripple
        return Grid(points, self.step)

    def ellipsoid(self, centre: Vector, radii: Vector, angle: float = 0.0) -> Array:
        """The cover of an ellipsoid, turned by `angle` (radians) in the plane of the first two axes.

        Edges are one pixel wide, so that borders show partial volumes as real images do.
        """
        offset = [x - c for x, c in zip(self.points, centre, strict=True)]
        cos, sin = np.cos(angle), np.sin(angle)
        offset[:2] = [cos * offset[0] + sin * offset[1], cos * offset[1] - sin * offset[0]]
        distance = np.sqrt(sum((x / r) ** 2 for x, r in zip(offset, radii, strict=True)))
        # exact on the surface and, along the shortest axis, everywhere: enough for an edge of one pixel
        inside: Array = np.clip(0.5 + (1 - distance) * min(radii) / self.step[0], 0, 1)
        return inside


def around(rng: Rng, centre: Vector, spread: float) -> Array:
    """`centre`, moved along each axis by at most `spread`."""
    return np.asarray(centre) + rng.uniform(-spread, spread, size=len(centre))


def scaled(rng: Rng, radii: Vector, spread: float) -> Array:
    """`radii`, each times a factor between 1 - spread and 1 + spread."""
    return np.asarray(radii) * rng.uniform(1 - spread, 1 + spread, size=len(radii))


def organ(grid: Grid, rng: Rng) -> list[Layer]:
    """A deformed ellipse on the left of a body, with two distractors of its size on the right."""
    bent = grid.warped(rng, 0.03)
    centre, radii, tilt = around(rng, (0, 0), 0.05), scaled(rng, (0.74, 0.86), 0.07), rng.uniform(-0.15, 0.15)
    body = bent.ellipsoid(centre, radii, tilt)
    inner = bent.ellipsoid(centre, radii - 0.09, tilt)
    wanted = grid.warped(rng, 0.05).ellipsoid(
        around(rng, (-0.03, -0.32), 0.1), scaled(rng, (0.34, 0.24), 0.18), rng.uniform(-0.6, 0.6)
    )
    pale = bent.ellipsoid(around(rng, (-0.28, 0.34), 0.08), scaled(rng, (0.22, 0.26), 0.15), rng.uniform(-0.6, 0.6))
    dark = bent.ellipsoid(around(rng, (0.32, 0.24), 0.08), scaled(rng, (0.2, 0.26), 0.15), rng.uniform(-0.6, 0.6))
    return [Layer(body, 0.62), Layer(inner, 0.4), Layer(pale, 0.6), Layer(dark, 0.15), Layer(wanted, 0.85, 1)]


def heart(grid: Grid, rng: Rng) -> list[Layer]:
    """A short-axis view: the left ventricle's blood, the ring of muscle around it, the right ventricle's crescent."""
    bent = grid.warped(rng, 0.03)
    chest = bent.ellipsoid(around(rng, (0, 0), 0.05), scaled(rng, (0.86, 0.92), 0.06))
    lung = bent.ellipsoid(around(rng, (-0.2, 0.6), 0.08), scaled(rng, (0.5, 0.3), 0.15), rng.uniform(-0.3, 0.3))
    liver = bent.ellipsoid(around(rng, (0.72, -0.2), 0.08), scaled(rng, (0.22, 0.5), 0.15), rng.uniform(-0.2, 0.2))
    # the whole heart is turned and scaled as one, about the middle of the left ventricle
    middle, size, turn = around(rng, (0.02, 0.1), 0.1), rng.uniform(0.85, 1.15), rng.uniform(-0.5, 0.5)
    inner, wall = 0.2 * size * rng.uniform(0.85, 1.15), 0.12 * size * rng.uniform(0.8, 1.2)
    towards_right = np.array([np.sin(turn), -np.cos(turn)])
    shape = grid.warped(rng, 0.02)
    oval = scaled(rng, (1, 1), 0.08)
    right = shape.ellipsoid(
        middle + 0.8 * (inner + wall) * towards_right, scaled(rng, (0.36 * size, 0.31 * size), 0.12), -turn
    )
    muscle = shape.ellipsoid(middle, (inner + wall) * oval, turn)
    blood = shape.ellipsoid(middle, inner * oval, turn)
    layers = [Layer(chest, 0.35), Layer(lung, 0.05), Layer(liver, 0.5)]
    layers += [Layer(right, 0.8, 3), Layer(muscle, 0.25, 2), Layer(blood, 0.85, 1)]
    for angle in (turn - 0.6, turn + 1.2):  # the papillary muscles are counted as blood, as clinics do
        place = middle + 0.55 * inner * np.array([np.cos(angle), np.sin(angle)])
        layers.append(Layer(shape.ellipsoid(place, (0.22 * inner, 0.22 * inner)), 0.3, 1))
    return layers


def lesions(grid: Grid, rng: Rng) -> list[Layer]:
    """A head with lesions scattered around its ventricles: mostly a few, sometimes one, sometimes twenty."""
    bent = grid.warped(rng, 0.025)
    centre, radii = around(rng, (0, 0, 0), 0.03), scaled(rng, (0.7, 0.86, 0.64), 0.05)

    def shell(thickness: float) -> Array:
        return bent.ellipsoid(centre, radii - thickness)

    white = radii - 0.22
    folds = grid.warped(rng, 0.06).ellipsoid(centre, white)
    layers = [Layer(shell(0), 0.6), Layer(shell(0.05), 0.08), Layer(shell(0.09), 0.2)]
    layers += [Layer(shell(0.12), 0.5), Layer(folds, 0.38)]
    for side in (-1, 1):
        place = centre + np.array((0.12 * side, 0, 0.03))
        layers.append(Layer(bent.ellipsoid(place, scaled(rng, (0.07, 0.26, 0.12), 0.2), 0.15 * side), 0.15))
    number = min(1 + int(rng.geometric(0.15)), 20) if rng.random() < 0.8 else 1
    for _ in range(number):
        direction = rng.normal(size=3)
        direction /= np.sqrt((direction**2).sum())
        place = centre + direction * white * rng.uniform(0.45, 0.95)
        # no smaller than what is sure to hold a voxel's centre, or a coarse grid would lose lesions
        size = np.maximum(scaled(rng, [rng.uniform(0.06, 0.15)] * 3, 0.3), 0.87 * np.array(grid.step))
        layers.append(Layer(grid.ellipsoid(place, size, rng.uniform(0, np.pi)), 0.8, 1))
    return layers


TASKS: Mapping[str, PhantomTask] = MappingProxyType(
    {
        "organ": PhantomTask(("organ",), axes=2, dims=(2,), draw=organ),
        "heart": PhantomTask(("left ventricle", "myocardium", "right ventricle"), axes=2, dims=(2,), draw=heart),
        "lesions": PhantomTask(("lesion",), axes=3, dims=(2, 3), draw=lesions),
    }
)


def painted(layers: Sequence[Layer], tone: Callable[[float], float], air: float) -> Array:
    """Paint the layers over `air`: brightness, float64 [*space].

    `tone` maps a tissue's reference brightness to the hospital's; it comes before the mixing of tissues at edges.
    """
    image = np.full_like(layers[0].cover, air)
    for layer in layers:
        image += layer.cover * (tone(layer.brightness) - image)
    return image


def numbered(layers: Sequence[Layer]) -> NDArray[np.uint8]:
    """Each pixel's class number, uint8 [*space]: that of the front-most layer that covers half of it."""
    label = np.zeros(layers[0].cover.shape, np.uint8)
    for layer in layers:
        label[layer.cover >= 0.5] = layer.label
    return label


def shares(layers: Sequence[Layer], structures: int) -> NDArray[np.float32]:
    """Each structure's visible share of each pixel, float32 [structures, *space], in thousandths.

    Rounded as images are, to be the same on every machine.
    """
    label = np.zeros((structures, *layers[0].cover.shape))
    for layer in layers:
        label *= 1 - layer.cover
        if layer.label:
            label[layer.label - 1] += layer.cover
    thousandths: Array = np.rint(1000 * label)
    return (thousandths / 1000).astype(np.float32)
