"""Sites that are away: asked before they are relied on, waited for as long as was said, asked again when back."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo

from coordinator import exchange as exchanges
from coordinator.conductor import VisitFailed
from coordinator.engine import InProcess
from coordinator.events import Listener
from coordinator.exchange import AWAY, Answer, Exchange, SiteFailure
from coordinator.grid import InProcessGrid, SimulatedSite
from coordinator.scenario import ScenarioError
from coordinator.simulate import carry_out
from protos.messages import PROGRESS, VISIT
from tests.conftest import Desk, outcome
from tests.coordinator.test_exchange import describe, settings, visit

NODE_UNAVAILABLE = 5


class ShakyGrid(InProcessGrid):
    """A node that is away: `away` says of every message whether it meets nobody; a dead node may still be listed."""

    away: Callable[[str, str], bool] = staticmethod(lambda site, sort: False)
    listed = True
    sent: list[tuple[str, str]]

    def __init__(self, sites: Iterable[SimulatedSite], listener: Listener) -> None:
        super().__init__(sites, listener)
        self.sent = []

    def get_nodes(self) -> Iterable[NodeInfo]:
        nodes = list(super().get_nodes())
        return [node for node in nodes if self.listed or not self.away(node.name, "list")]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        names = list(super().push_messages(messages))
        for message, name in zip(messages, names, strict=True):
            site = self._settings[message.metadata.dst_node_id].name
            self.sent.append((site, message.metadata.message_type))
            if self.away(site, message.metadata.message_type):
                self._lost[name] = Message(Error(NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)
                self._waiting.pop(name)
        return names

    @property
    def _lost(self) -> dict[str, Message]:
        return self.__dict__.setdefault("lost", {})

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for name in message_ids:
            if name in self._lost:
                yield self._lost.pop(name)
            else:
                yield from super().pull_messages([name])


class Times:
    """True so many times, then False."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left >= 0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "BACK_SECONDS", 0.001)
    monkeypatch.setattr(exchanges, "POLL_SECONDS", 0.001)


def asked(grid: ShakyGrid, question: Any, patience: float = 5.0) -> tuple[Any, list[tuple[str, float]]]:
    waited: list[tuple[str, float]] = []
    exchange = Exchange(grid, 1, lambda site: patience, lambda *told: waited.append(told))
    (answer,) = exchange.ask([question])
    return answer, waited


def test_a_site_is_asked_whether_it_is_there_before_a_model_is_sent_to_it(tmp_path: Path) -> None:
    grid = ShakyGrid(settings(tmp_path), Listener())
    answer, waited = asked(grid, visit("east"))
    assert isinstance(answer, Answer)
    assert (grid.sent, waited) == ([("east", PROGRESS), ("east", VISIT)], [])


@pytest.mark.parametrize("listed", [True, False])
def test_a_site_that_comes_back_is_asked_again(tmp_path: Path, listed: bool) -> None:
    grid, gone = ShakyGrid(settings(tmp_path), Listener()), Times(3)
    grid.listed = listed
    grid.away = lambda site, sort: site == "east" and gone()
    answer, waited = asked(grid, visit("east"))
    assert isinstance(answer, Answer)
    assert waited == [("east", 5.0)]
    assert [sort for _, sort in grid.sent].count(VISIT) == 1


def test_a_visit_that_is_lost_is_asked_for_again(tmp_path: Path) -> None:
    grid, lost = ShakyGrid(settings(tmp_path), Listener()), Times(1)
    grid.away = lambda site, sort: sort == VISIT and lost()
    answer, waited = asked(grid, visit("east"))
    assert isinstance(answer, Answer)
    assert [sort for _, sort in grid.sent] == [PROGRESS, VISIT, PROGRESS, VISIT]
    assert waited == [("east", 5.0)]


def test_patience_ends_with_a_sentence_and_is_not_had_twice(tmp_path: Path) -> None:
    grid = ShakyGrid(settings(tmp_path), Listener())
    grid.away = lambda site, sort: site == "east"
    waited: list[tuple[str, float]] = []
    exchange = Exchange(grid, 1, lambda site: 0.05, lambda *told: waited.append(told))
    first, second, other = exchange.ask([describe("east"), visit("east"), describe("north")])
    assert isinstance(first, SiteFailure)
    assert isinstance(second, SiteFailure)
    assert isinstance(other, Answer)
    assert (first.code, str(first)) == (
        AWAY,
        "Site east: it was away for more than 0.05 s; resume the run when it is back. [AWAY]",
    )
    assert waited == [("east", 0.05), ("east", 0.0)]


def test_where_nodes_cannot_come_back_nobody_is_waited_for(tmp_path: Path) -> None:
    grid = ShakyGrid(settings(tmp_path), Listener())
    grid.away = lambda site, sort: site == "east"
    (answer,) = Exchange(grid, 1).ask([describe("east")])
    assert isinstance(answer, SiteFailure)
    assert answer.code == "FLOWER_5"


# Whole runs


class Shaky(InProcess):
    """Nodes in this process, of which `east` is away as long as `gone` says."""

    away = True

    def __init__(self, gone: Callable[[], bool]) -> None:
        self._gone = gone

    @contextmanager
    def connected(self, sites: Sequence[SimulatedSite], listener: Listener) -> Iterator[ShakyGrid]:
        grid = ShakyGrid(sites, listener)
        grid.away = lambda site, sort: site == "east" and self._gone()
        yield grid


def carried_out(desk: Desk, gone: Callable[[], bool], *overrides: str) -> str:
    run = desk.begin(*overrides)
    carry_out(run, desk.home, device="cpu", listener=Listener(), engine=Shaky(gone))
    return run


def test_a_run_waits_fails_and_is_resumed_as_if_undisturbed(desk: Desk) -> None:
    undisturbed = outcome(desk.row(desk.simulate()))
    run = desk.begin("patience.wait=0.01 s")
    with pytest.raises(VisitFailed, match=r"Site east: it was away for more than 0\.01 s; .* \[AWAY\]$"):
        carry_out(run, desk.home, device="cpu", listener=Listener(), engine=Shaky(lambda: True))
    assert desk.row(run).status == "failed"
    desk.carry_out(run)
    assert outcome(desk.row(run)) == undisturbed


def test_who_waits_for_as_long_as_it_takes_ends_as_if_undisturbed(desk: Desk) -> None:
    undisturbed = outcome(desk.row(desk.simulate()))
    run = carried_out(desk, Times(9), "patience={wait: 0.001 s, then: wait}")
    assert outcome(desk.row(run)) == undisturbed


def test_a_stop_is_skipped_in_the_name_of_who_said_so(desk: Desk) -> None:
    run = carried_out(desk, lambda: True, "sites.1.patience={wait: 0.001 s, then: {skip: Dr. Roe}}")
    row = desk.row(run)
    assert row.status == "incomplete"
    assert [stop.status for stop in row.stops] == ["done", "skipped", "done"]
    assert (row.stops[1].skipped_by, row.stops[1].skipped_why) == (
        "Dr. Roe",
        "east: it was away for more than 0.001 s.",
    )


@pytest.mark.parametrize(
    ("text", "seconds"), [("90 s", 90), ("1.5min", 90), ("2 h", 7200), ("1 d", 86400), ("20", 20), ("0.5", 0.5)]
)
def test_how_long_is_said_in_words(desk: Desk, text: str, seconds: float) -> None:
    assert desk.scenario(f"patience.wait={text}").patience.wait == seconds


@pytest.mark.parametrize(
    "text", ["-1", "tonight", "2 weeks", ".inf", ".nan", "1.0e+10", "99999 d", "1 h 30 min", "[1]"]
)
def test_what_is_no_time_is_refused(desk: Desk, text: str) -> None:
    with pytest.raises(ScenarioError, match=r"patience\.wait"):
        desk.scenario(f"patience.wait={text}")


class TwiceGrid(InProcessGrid):
    """Every reply arrives twice."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in super().pull_messages(message_ids):
            yield from (reply, reply)


class Twice(InProcess):
    away = True

    @contextmanager
    def connected(self, sites: Sequence[SimulatedSite], listener: Listener) -> Iterator[TwiceGrid]:
        yield TwiceGrid(sites, listener)


def test_a_message_that_arrives_twice_counts_once(desk: Desk) -> None:
    undisturbed = outcome(desk.row(desk.simulate()))
    run = desk.begin()
    carry_out(run, desk.home, device="cpu", listener=Listener(), engine=Twice())
    assert outcome(desk.row(run)) == undisturbed
