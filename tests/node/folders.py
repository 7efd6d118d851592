"""Folders as sources, and what is said of them."""

from pathlib import Path
from typing import Any

from node.data.layouts import FolderSource
from node.settings import SiteSettings
from protos.plan import Split, Task


def source_of(
    folder: Path,
    classes: tuple[str, ...],
    *,
    dims: Any,
    labels: dict[int, str] | None = None,
    channels: int = 1,
    group: Any = "case",
) -> FolderSource:
    """The folder as a site's source, for a task of eight pixels or voxels along each axis."""
    site = SiteSettings(name="s", home=folder, data=folder, labels=labels)
    task = Task(dims=dims, channels=channels, size=(8,) * dims, classes=classes)
    return FolderSource(site, task, Split(group=group))


def sentences(source: FolderSource) -> str:
    """All that is said of what was left out; each is one sentence on one line."""
    for problem in source.problems:
        assert problem.sentence.endswith(".")
        assert "\n" not in problem.sentence
    return " ".join(problem.sentence for problem in source.problems)
