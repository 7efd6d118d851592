"""The hospitals' scanners: how one and the same anatomy looks from place to place (docs/synthetic-hospitals.md)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.phantoms.anatomy import Array, Layer, Rng, painted

# Images are whole numbers, as detectors give: 1000 is the brightest tissue of the reference hospital. Rounding also
# hides the last bit of sines and powers, in which processors differ, so that an image is the same on every machine.
WHITE = 1000
TEXTURE = 0.15  # tissue is not even: the share that it varies by, before smoothing


@dataclass(frozen=True)
class Appearance:
    """One hospital's look. Brightness runs from 0 to 1 before `gamma`; lengths are in pixels of the image."""

    name: str
    tones: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # what brightness 0, 1/4, 1/2, 3/4, 1 becomes
    air: float = 0.0
    bias: float = 0.03  # share by which a smooth field brightens or darkens (root mean square over the image)
    blur: float = 0.0  # sigma
    coarse: float = 1.0  # the scanner's own pixel, in plane: the image is interpolated from it
    noise: float = 0.02  # standard deviation, per scanner pixel
    rician: bool = False  # the magnitude of a complex signal, which lifts the dark; otherwise Gaussian
    gamma: float = 1.0
    slices: float = 4 / 3  # distance of a volume's slices
    stain: tuple[float, float, float] = (0.6, 1.0, 1.6)  # exponents of red, green and blue in colour images

    def tone(self, brightness: float) -> float:
        """What a tissue of the reference hospital's `brightness` becomes here."""
        return float(np.interp(brightness, np.linspace(0, 1, len(self.tones)), self.tones))

    def acquire(self, layers: list[Layer], channels: int, rng: Rng) -> NDArray[np.float32]:
        """Image a patient: float32 [channels, *space] of whole numbers."""
        from scipy.ndimage import gaussian_filter

        image = painted(layers, self.tone, self.air)
        in_plane = np.array([1.0, 1.0] + [0.0] * (image.ndim - 2))
        image *= 1 + TEXTURE * gaussian_filter(rng.normal(size=image.shape), 1.5 * in_plane)
        image *= 1 + self.bias * _field(image.shape, rng)
        # what a coarse pixel averages over counts as blur, too
        image = gaussian_filter(image, np.hypot(self.blur, 0.4 * (self.coarse - 1)) * in_plane, mode="nearest")
        scanned = _resized(image, [max(1, round(n / self.coarse)) for n in image.shape[:2]])
        scanned += self.noise * rng.normal(size=scanned.shape)
        if self.rician:
            scanned = np.hypot(scanned, self.noise * rng.normal(size=scanned.shape))
        bright = np.clip(_resized(scanned, image.shape[:2]), 0, None) ** self.gamma
        powers = (1.0,) if channels == 1 else self.stain
        return np.stack([np.rint(WHITE * bright**power) for power in powers]).astype(np.float32)


def _resized(image: Array, plane: Sequence[int]) -> Array:
    """Interpolate linearly to `plane` rows and columns; slices stay."""
    from scipy.ndimage import zoom

    factors = [new / old for new, old in zip(plane, image.shape, strict=False)] + [1.0] * (image.ndim - 2)
    resized: Array = zoom(image, factors, order=1, mode="nearest", grid_mode=True)
    return resized


def _field(shape: Sequence[int], rng: Rng) -> Array:
    """A smooth field with mean square 1: a random polynomial of degree two over the image, zero in its middle."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    terms = [*axes, *(x * y for i, x in enumerate(axes) for y in axes[i:])]
    field: Array = np.zeros(shape)
    for weight, term in zip(rng.normal(size=len(terms)), terms, strict=True):
        field += weight * term
    field /= np.sqrt(np.square(field).mean())
    return field


APPEARANCES: tuple[Appearance, ...] = (
    Appearance("reference"),
    Appearance("noisy, uneven", tones=(0.15, 0.35, 0.5, 0.65, 0.8), bias=0.25, noise=0.08, slices=1.0),
    Appearance("inverted", tones=(1.0, 0.75, 0.5, 0.25, 0.05), noise=0.04, rician=True, slices=1.75),
    Appearance("coarse, other sequence", tones=(0.0, 0.15, 0.7, 1.1, 0.0), coarse=2.0, blur=0.5, slices=2.0),
    Appearance("inverted, blurred", tones=(0.9, 0.75, 0.55, 0.35, 0.2), bias=0.15, blur=0.8, noise=0.05),
    Appearance("negative film", tones=(0.9, 0.7, 0.5, 0.3, 0.1), air=1.0, gamma=0.7, noise=0.04, slices=1.25),
    Appearance("old scanner", bias=0.2, blur=1.0, coarse=1.5, noise=0.1, rician=True, gamma=1.6, slices=2.5),
    Appearance("other sequence", tones=(0.2, 0.9, 0.45, 0.3, 0.75), bias=0.1, noise=0.05, slices=1.75),
)
