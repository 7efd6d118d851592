"""`locum-node check`: examine a site as its options or a scenario say, and print what was found."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from node.data.examination import SiteExamination, absent_classes, examine
from node.data.excerpt import Excerpt
from node.data.layouts import FolderSource
from node.data.pairing import find_cases
from node.data.readers import stored_channels
from node.data.source import Problem, Unreadable
from node.settings import SiteSettings
from protos.plan import Split, Task

QUIET_SECONDS = 2.0  # a check that is quicker shows no progress bar
MOST_SHAPES = 10


def print_examination(examination: SiteExamination, console: Console) -> None:
    """Print counts, grids, classes and problems; frames and colours only where the console is a terminal."""
    frame = box.ROUNDED if console.is_terminal else None
    parts = Table("part", "cases", "patients", box=frame)
    for part, cases in examination.parts.items():
        parts.add_row(part, str(cases), str(examination.patients[part]))
    grids = Table("shape", "spacing", "cases", box=frame)
    common = sorted(examination.grids.items(), key=lambda item: (-item[1], item[0]))
    for (shape, spacing), cases in common[:MOST_SHAPES]:
        grids.add_row(" x ".join(map(str, shape)), " x ".join(f"{size:g}" for size in spacing), str(cases))
    if rest := common[MOST_SHAPES:]:
        grids.add_row(f"{len(rest)} others", "", str(sum(cases for _, cases in rest)))
    classes = Table("class", "values", "cases", "fraction", box=frame)
    total = sum(found.pixels for found in examination.classes) or 1
    for found in examination.classes:
        classes.add_row(
            Text(found.name), ", ".join(map(str, found.values)), str(found.cases), f"{found.pixels / total:.4f}"
        )
    for table in (parts, grids, classes) if examination.cases else ():
        console.print(table)
    for problem in examination.problems:
        # Text, since a file name may look like rich's markup
        word = Text("spoils training: ", "bold red") if problem.spoils else Text("doubtful: ", "yellow")
        console.print(word + Text(problem.sentence), soft_wrap=True)
    spoiling = sum(problem.spoils for problem in examination.problems)
    usable = f"{examination.cases} usable case{'s' * (examination.cases != 1)}"
    verdict = f"{spoiling} problem{'s' * (spoiling != 1)} would spoil training" if spoiling else "ready for a run"
    console.print(f"{usable}; {verdict}.")


def run_check(
    folder: Path,
    *,
    classes: str | None = None,
    dims: int | None = None,
    channels: int | None = None,
    labels: str | None = None,
    split: Split | None = None,
    unseen: bool = False,
    console: Console | None = None,
) -> int:
    """Examine a site's folder and print what was found.

    `classes` like "background,nucleus", `labels` like "255=nucleus"; what is not given is taken from the files.
    Returns the exit status: 0 when the site is ready, 1 when something would spoil training, 2 for a wrong option.
    """
    console = console or Console()
    folder = _resolved(folder)
    try:
        mapping = _parse_labels(labels)
        task = Task.model_validate(_described(folder, classes, dims, channels, mapping))
    except (ValidationError, ValueError) as error:
        detail = error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else error
        console.print(Text(f"The options do not describe a task: {detail}."), soft_wrap=True)
        return 2
    excerpt = Excerpt(task=task, split=split or Split(), labels=mapping, unseen=unseen)
    examination = _with_progress(folder, excerpt, console)
    if classes is None and mapping is None:
        examination = _as_inferred(examination)
    print_examination(examination, console)
    return 0 if examination.ok else 1


def run_scenario_check(folder: Path, excerpt: Excerpt, *, console: Console | None = None) -> int:
    """Examine a site's folder as a scenario's run will use it; prints and returns what `run_check` does."""
    console = console or Console()
    examination = _with_progress(_resolved(folder), excerpt, console)
    print_examination(examination, console)
    return 0 if examination.ok else 1


def _resolved(folder: Path) -> Path:
    """The folder with a name that sentences can use, which `.` has not."""
    try:
        return folder.resolve()
    except (OSError, RuntimeError):  # links in a circle: to be called no folder
        return folder


def _parse_labels(labels: str | None) -> dict[int, str] | None:
    if labels is None:
        return None
    found: dict[int, str] = {}
    for entry in labels.split(","):
        value, _, name = (piece.strip() for piece in entry.partition("="))
        if not name or not value.removeprefix("-").isdecimal():
            raise ValueError(f"{entry.strip()!r} in labels is not like 255=nucleus")
        found[int(value)] = name
    return found


def _described(
    folder: Path, classes: str | None, dims: int | None, channels: int | None, labels: Mapping[int, str] | None
) -> dict[str, object]:
    """The keys of a Task: options first, then what the files show."""
    cases = find_cases(folder).cases.values()
    if dims is None:
        dims = 3 if cases and all(case.volume for case in cases) else 2
    if channels is None:
        channels = 1
        for case in cases:
            try:
                channels = stored_channels(case)
                break
            except Unreadable:
                continue
    if classes is not None:
        names = [name.strip() for name in classes.split(",")]
    elif labels is not None:
        names = list(dict.fromkeys([labels.get(0, "background"), *labels.values()]))
    else:
        names = [str(number) for number in range(256)]  # all that a label can hold; cut to what is found
    return {"dims": dims, "channels": channels, "size": (64,) * dims, "classes": names}


def _as_inferred(examination: SiteExamination) -> SiteExamination:
    """Without declared classes: keep those that occur, and ask when their values leave wide gaps."""
    present = [number for number, found in enumerate(examination.classes) if found.cases]
    top = max(present, default=0)
    absent = tuple(absent_classes(examination.classes[: top + 1]))
    if present and top >= 2 * len(present):
        values = ", ".join(map(str, present))
        sentence = (
            f"The labels hold the values {values}, which do not look like class numbers; say what they mean, "
            f"in a scenario with labels: {{{top}: structure}}, here with --labels '{top}=structure'."
        )
        absent = (Problem("labels", sentence),)
    classes = tuple(examination.classes[number] for number in present)
    return replace(examination, classes=classes, absent_classes=absent)


def _with_progress(folder: Path, excerpt: Excerpt, console: Console) -> SiteExamination:
    settings = SiteSettings(name="site", home=folder, data=folder, labels=excerpt.labels)
    source = FolderSource(settings, excerpt.task, excerpt.split.at(excerpt.unseen))
    begun = time.monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("looking at cases", visible=False)

        def on_case(done: int, total: int) -> None:
            slow = time.monotonic() - begun > QUIET_SECONDS
            progress.update(task, completed=done, total=total, visible=slow)

        return examine(source, unseen=excerpt.unseen, scored=excerpt.scored, on_case=on_case)
