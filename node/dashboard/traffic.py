"""Bytes in and out per kind over time: kept as a sum per minute, and continued as the ledger grows."""

import json
import threading
from collections import defaultdict
from datetime import datetime
from typing import NamedTuple

from pydantic import BaseModel
from sqlalchemy import or_, select, text

from node.dashboard.reading import Reader
from node.ledger import Entry, carries
from protos.handover import Kind

BARS = 60  # at most, in a chart
_STEPS = (60, 300, 900, 3600, 10_800, 43_200, 86_400, 604_800, 2_592_000)  # seconds that a bar may span


class SeriesShown(BaseModel):
    """One line or row of bars of a chart."""

    label: str
    unit: str


class AxisShown(BaseModel):
    """The horizontal axis of a chart; times are seconds since 1970."""

    label: str
    time: bool


class ChartShown(BaseModel):
    """A chart: the first of `values` belongs to the axis, the others to the series in their order."""

    x: AxisShown
    series: list[SeriesShown]
    values: list[list[float | None]]


class Total(NamedTuple):
    """All bytes of a kind that went one way."""

    direction: str
    kind: str
    bytes: int


class Traffic:
    """Sums over the ledger, which only ever grows: an entry is read once."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._seen = 0
        self._minutes: defaultdict[tuple[str, str], defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))

    def refresh(self) -> None:
        """Take up what came since the last time."""
        carrying = or_(*(text(carries(kind)) for kind in Kind))
        columns = (Entry.seq, Entry.time, Entry.direction, Entry.kind_bytes)
        with self._lock, self._reader.connect() as connection:
            query = select(*columns).where(Entry.seq > self._seen, carrying).order_by(Entry.seq)
            for seq, time, direction, kind_bytes in connection.execution_options(yield_per=1000).execute(query):
                minute = int(datetime.fromisoformat(time).timestamp()) // 60 * 60
                for kind, count in json.loads(kind_bytes).items():
                    self._minutes[direction, kind][minute] += int(count)
                self._seen = seq

    def totals(self) -> list[Total]:
        """Per way and kind, in the order of the kinds."""
        self.refresh()
        with self._lock:
            return [
                Total(direction, kind, sum(self._minutes[direction, kind].values()))
                for direction in ("in", "out")
                for kind in Kind
                if (direction, kind) in self._minutes
            ]

    def chart(self) -> ChartShown:
        """Bars of equal spans, as short as they can be."""
        self.refresh()
        with self._lock:
            order = [(way, kind) for way in ("in", "out") for kind in Kind if (way, kind) in self._minutes]
            minutes = sorted({minute for key in order for minute in self._minutes[key]})
            if not minutes:
                return ChartShown(x=AxisShown(label="time", time=True), series=[], values=[[]])
            whole = max(minutes[-1] - minutes[0], 60)
            step = next((step for step in _STEPS if whole / step <= BARS), _STEPS[-1])
            first = minutes[0] // step * step
            times = list(range(first, minutes[-1] + 1, step))
            values: list[list[float | None]] = [[float(time) for time in times]]
            for key in order:
                bars = [0.0] * len(times)
                for minute, count in self._minutes[key].items():
                    bars[(minute - first) // step] += count
                values.append([bar or None for bar in bars])
        series = [SeriesShown(label=f"{kind} {way}", unit="bytes") for way, kind in order]
        return ChartShown(x=AxisShown(label="time", time=True), series=series, values=values)
