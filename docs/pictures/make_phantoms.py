"""Draw `phantoms.png`, the picture of docs/synthetic-hospitals.md: `python docs/pictures/make_phantoms.py`."""

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

from node.phantoms import APPEARANCES, TASKS, PhantomSource
from protos.plan import PhantomSite, Task

COLOURS = ("#ff5a36", "#36c5f0", "#ffd23f")  # one per class


def main() -> None:
    """One row per task, one column per appearance; each cell is another hospital's first patient."""
    figure, cells = plt.subplots(len(TASKS), len(APPEARANCES), figsize=(10, 4.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for row, (name, anatomy) in zip(cells, TASKS.items(), strict=True):
        task = Task(dims=anatomy.dims[-1], size=(80,) * anatomy.dims[-1], classes=("background", *anatomy.classes))
        for number, cell in enumerate(row):
            scan = PhantomSource(PhantomSite(task=name, appearance=number, size=80), task).load("case-000")
            image, label = scan.image[0], scan.label
            if image.ndim == 3:  # the slice with the most of what is wanted, rows from front to back
                busiest = int((label > 0).sum(axis=(0, 1)).argmax())
                image, label = np.flip(image[..., busiest].T, 0), np.flip(label[..., busiest].T, 0)
            # few shades and whole pixels keep the file small
            cell.imshow(image, cmap=mpl.colormaps["gray"].resampled(24), vmin=0, vmax=1050, interpolation="nearest")
            for value in np.unique(label[label > 0])[::-1]:  # inner structures have the lower numbers
                cell.contour(label == value, [0.5], colors=COLOURS[value - 1], linewidths=1)
            cell.set(xticks=[], yticks=[])
    for number, (cell, appearance) in enumerate(zip(cells[0], APPEARANCES, strict=True)):
        cell.set_title(f"{number}: {appearance.name}".replace(", ", ",\n"), fontsize=7)
    for cells_of_task, name in zip(cells, TASKS, strict=True):
        cells_of_task[0].set_ylabel(name, fontsize=9)
    figure.savefig(Path(__file__).with_name("phantoms.png"), dpi=100, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
