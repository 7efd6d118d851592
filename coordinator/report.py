"""The report of one run: a self-contained page, its figures as PNG, its scores as CSV, its document as JSON."""

import base64
import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coordinator.learning import COPIES, COURSES, courses, scalars
from coordinator.metrics import DEFINITIONS, Score
from coordinator.summary import DRIFTS, RunSummary, Traffic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Sample = tuple[str, int, bytes]  # site, visit (from 1), PNG

CONVENTIONS = (
    "DSC is the mean over a site's scored cases, per class; the matrix shows the mean over classes.",
    "ASD is, per case and class, the mean of the two directed mean surface distances, in mm (in pixels for pictures).",
    "Where neither truth nor prediction holds the class (“both empty”), DSC counts as 1 and ASD as 0.",
    "Where only one of them does (“penalised”), DSC is 0 and ASD counts as the length of the image's diagonal.",
)


@dataclass(frozen=True)
class _Picture:
    """One figure for light and for dark screens, as PNG, and its width in CSS pixels."""

    light: bytes
    dark: bytes
    width: int


def plain_words(summary: RunSummary) -> list[str]:
    """What the run learnt and forgot, in sentences for people; the most important first."""
    matrix = summary.matrix("dsc")
    if len(matrix) == 0:
        return [*_unfinished(summary), "No model has been scored yet.", *_policies(summary)]
    said = _forgetting(summary)
    final = {site: float(matrix[-1, j]) for j, site in enumerate(summary.columns)}
    unseen = [f"{final[site]:.2f} DSC on {site}" for site in summary.unseen if not math.isnan(final[site])]
    if unseen:
        said.append(f"Where it never was, it reaches {_listed(unseen)}.")
    if (overall := summary.metrics["dsc"]["overall"]) is not None:
        said.append(f"Over all sites it ends at {overall:.2f} DSC.")
    if summary.plan.scored != "test":
        said.append(f"All scores are over {summary.plan.scored_cases}, not over test cases.")
    if left_out := [site for site, column in zip(summary.columns, matrix.T, strict=True) if np.isnan(column).all()]:
        said.append(f"There is no score on {_listed(left_out)}, so the means leave that out.")
    return said + _policies(summary) + _unfinished(summary)


def write_report(
    summary: RunSummary, folder: Path, overlays: Sequence[Sample] = (), replays: Sequence[Sample] = ()
) -> Path:
    """Write `report.html`, `matrix_dsc.png`, `matrix_asd.png`, `curves.png`, `scores.csv` and `run.json` to `folder`.

    overlays: segmented samples to embed, replays: real images above replayed ones; hand in those of synthetic sites
    only. The folder is made when it is missing, files of an earlier report are replaced. Returns the page's path.
    """
    from coordinator.figures import png
    from coordinator.line_figures import scores_over_visits

    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "run.json", (json.dumps(summary.document(), allow_nan=False) + "\n").encode())
    _write(folder / "scores.csv", scores_csv(summary))
    pictures = _pictures(summary)
    for name in ("matrix_dsc", "matrix_asd"):
        _write(folder / f"{name}.png", pictures[name].light)
    _write(folder / "curves.png", png(scores_over_visits(summary)))
    page = folder / "report.html"
    _write(page, _page(summary, pictures, overlays, replays).encode())
    return page


def _write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; on a full disk that is said with its name."""
    try:
        path.write_bytes(content)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _forgetting(summary: RunSummary) -> list[str]:
    matrix, together = summary.matrix("dsc"), len(summary.visited[-1])
    if summary.order is None:
        return (
            [f"One model learnt from {together} sites at once, so there is no visit to forget."] if together > 1 else []
        )
    changes = []
    for row, j in enumerate(summary.order[:-1]):
        own, now = float(matrix[row, j]), float(matrix[-1, j])
        if not math.isnan(now - own):
            changes.append((now - own, summary.columns[j], own, now))
    if not changes:
        last = float(matrix[-1, summary.order[-1]])
        return [f"After its visit to {summary.columns[summary.order[-1]]} the model segments it at {last:.2f} DSC."]
    changes.sort()
    lost = [change for change in changes if change[0] <= -0.005]  # what two decimals show
    if not lost:
        sites = (
            _listed([site for _, site, _, _ in changes]) if len(changes) <= 4 else f"all {len(changes)} earlier sites"
        )
        own_visit = "its own visit" if len(changes) == 1 else "their own visits"
        return [f"Nothing was forgotten: on {sites} the model is no worse than right after {own_visit}."]
    _, site, own, now = lost[0]
    said = [
        f"After the last visit the model segments {site} at {now:.2f} DSC; right after its own visit it was {own:.2f}."
    ]
    if rest := [f"{site} ({own:.2f} to {now:.2f})" for _, site, own, now in lost[1:]]:
        shown = rest[:4] + ([f"{len(rest) - 4} more"] if len(rest) > 4 else [])
        said.append(f"It also forgot some of {_listed(shown)}.")
    if gained := [
        f"{site} ({own:.2f} to {now:.2f})" for change, site, own, now in reversed(changes) if change >= 0.005
    ]:
        said.append(f"It went on improving on {_listed(gained[:4])}.")
    return said


def _policies(summary: RunSummary) -> list[str]:
    said = []
    for site, changes in (summary.policies[-1] if summary.policies else {}).items():
        updates, memory = changes.get("updates"), changes.get("memory")
        parts = []
        if updates is not None:
            parts.append(f"updates leave clipped to {updates['clip']:g}, with noise {updates['noise']:g}")
        if memory is not None:
            parts.append(f"a run keeps at most {memory['cases']} cases for rehearsal")
        what = f"By the policy of {site} {' and '.join(parts)}." if parts else f"The policy of {site} was not told."
        said.append(what)
    if len(summary.policies) > 1:
        said.append("That was not so from the beginning: sites' policies were changed while the run was under way.")
    return said


def _unfinished(summary: RunSummary) -> list[str]:
    said = []
    for stop in summary.stops:
        where = _listed(stop.sites[:3]) + (" and others" if len(stop.sites) > 3 else "")
        if stop.status == "skipped":
            said.append(f"Stop {stop.index} ({where}) was skipped by {stop.skipped_by}: {stop.why}")
        elif stop.status == "failed":
            said.append(f"Stop {stop.index} ({where}) failed at {stop.failed_at or 'the coordinator'}: {stop.code}.")
    left_out: dict[str, int] = {}
    for stop in summary.stops:
        for sentence in stop.without:
            left_out.setdefault(sentence, stop.index)
    said += [f"From stop {stop} on, {sentence}" for sentence, stop in left_out.items()]
    if not summary.complete:
        done = sum(stop.status == "done" for stop in summary.stops)
        said.append(f"The run is {summary.status}: {done} of {len(summary.stops)} stops are done.")
    return said


def scores_csv(summary: RunSummary) -> bytes:
    """Tidy CSV: one line per visit, scored site, metric and class. An empty class means all of them together."""
    file = StringIO(newline="")
    out = csv.writer(file)
    out.writerow(["visit", "visited_site", "scored_site", "unseen", "metric", "class", "value"])
    means = {"dsc": summary.matrix("dsc"), "asd": summary.matrix("asd")}
    for i, visited in enumerate(summary.visited):
        for j, site in enumerate(summary.columns):
            if np.isnan(means["dsc"][i, j]):
                continue
            cell = [i + 1, "+".join(visited), site, int(j >= len(summary.sites))]
            for metric, values in (("dsc", summary.dsc), ("asd", summary.asd)):
                out.writerow([*cell, metric, "", float(means[metric][i, j])])
                out.writerows([*cell, metric, name, float(values[i, j, c])] for c, name in enumerate(summary.classes))
            out.writerow([*cell, "both_empty", "", int(summary.both_empty[i, j])])
            out.writerow([*cell, "penalised", "", int(summary.penalised[i, j])])
    return file.getvalue().encode()


def _page(
    summary: RunSummary, pictures: Mapping[str, _Picture], overlays: Sequence[Sample], replays: Sequence[Sample]
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_url": _data_url, "bytes": _bytes, "number": _number, "duration": _duration}
    kinds = sorted({row.kind for row in summary.traffic})
    by_site: dict[str, list[Traffic]] = {site: [] for site in summary.columns}
    for row in summary.traffic:
        by_site.setdefault(row.site, []).append(row)
    return environment.get_template("report.html").render(
        summary=summary,
        words=plain_words(summary),
        pictures=pictures,
        definitions=[
            (definition, [(score, summary.metrics[score][key], definition.better(score)) for score in summary.metrics])
            for key, definition in DEFINITIONS.items()
        ],
        conventions=CONVENTIONS,
        final=_final_rows(summary),
        by_kind=[(kind, *_total(row for row in summary.traffic if row.kind == kind)) for kind in kinds],
        by_site=[(site, *_total(rows)) for site, rows in by_site.items()],
        overlays=overlays,
        replays=replays,
        drifts=_drift_rows(summary) if summary.drifts else {},
        copies=[stop for stop in summary.stops if any(name in stop.metrics for name in COPIES)],
        similarities=COPIES,
        courses={kind: course for kind, course in COURSES.items() if f"course_{kind}" in pictures},
        scalars=scalars,
    )


def _pictures(summary: RunSummary) -> dict[str, _Picture]:
    from coordinator import figures, line_figures

    def picture(draw: "Callable[[figures.Theme], Figure]") -> _Picture:
        light, dark = draw(figures.LIGHT), draw(figures.DARK)
        return _Picture(figures.png(light), figures.png(dark), round(light.get_figwidth() * 96))

    scores: tuple[Score, ...] = ("dsc", "asd")
    return {
        **{f"matrix_{score}": picture(partial(figures.heat_map, summary, score)) for score in scores},
        **{f"curves_{score}": picture(partial(line_figures.scores_over_visits, summary, (score,))) for score in scores},
        "traffic": picture(partial(figures.traffic, summary)),
        **({"drift": picture(partial(line_figures.drift_over_visits, summary))} if summary.drifts else {}),
        **{
            f"course_{kind}": picture(partial(line_figures.course_over_steps, summary, kind))
            for kind in COURSES
            if courses(summary, kind)
        },
    }


def _final_rows(summary: RunSummary) -> list[dict[str, Any]]:
    """Per scored site: the final model's scores per class, and how often the empty-mask conventions applied."""
    return [
        {
            "site": site,
            "unseen": j >= len(summary.sites),
            "cases": int(summary.cases[j]),
            "classes": list(zip(summary.dsc[-1, j].tolist(), summary.asd[-1, j].tolist(), strict=True)),
            "counts": [int(counts[-1, j]) for counts in (summary.both_empty, summary.penalised)],
            "totals": [int(counts[:, j].sum()) for counts in (summary.both_empty, summary.penalised)],
        }
        for j, site in enumerate(summary.columns if summary.visited else ())
    ]


def _drift_rows(summary: RunSummary) -> dict[str, list[tuple[str, list[float]]]]:
    """Per statistic: every site that was replayed, with the drift after each visit, NaN before its own."""
    replayed = [j for j in range(len(summary.columns)) if not np.isnan(summary.drift[:, j]).all()]
    return {
        name: [(summary.columns[j], summary.drift[:, j, i].tolist()) for j in replayed] for i, name in enumerate(DRIFTS)
    }


def _total(rows: Iterable[Traffic]) -> tuple[int, int]:
    """Bytes to and from the sites."""
    rows = list(rows)
    return sum(row.sent for row in rows), sum(row.received for row in rows)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _bytes(count: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
