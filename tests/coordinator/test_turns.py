"""Whose turn it is: by time, order, sites and workers."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from coordinator.turns import Waiting, choose

NOW = datetime(2031, 5, 17, 22, 30, tzinfo=UTC)
SITES = ("north", "east", "south")
ONLINE = dict.fromkeys(SITES, True)


def at(run: str, *sites: str, **more: object) -> Waiting:
    return Waiting(run, frozenset(sites), tuple(sites), **more)  # type: ignore[arg-type]


def chosen(*queue: Waiting, carried: tuple[Waiting, ...] = (), workers: int = 9) -> list[str]:
    found, sentences = choose(queue, {one.run: one for one in carried}, workers, NOW, lambda: ONLINE)
    assert {one.run for one in queue} == {one.run for one in found} | set(sentences)
    return [one.run for one in found]


def test_runs_at_other_sites_begin_together() -> None:
    assert chosen(at("a", "north"), at("b", "east")) == ["a", "b"]


def test_one_site_is_with_one_run_at_a_time() -> None:
    assert chosen(at("a", "north", "east"), at("b", "east", "south")) == ["a"]
    assert chosen(at("b", "east", "south"), carried=(at("a", "north", "east"),)) == []


def test_nobody_is_passed_over_for_ever() -> None:
    """b waits for a at north; c, which needs east as b does, does not get in before it."""
    assert chosen(at("b", "north", "east"), at("c", "east"), at("d", "south"), carried=(at("a", "north"),)) == ["d"]


def test_one_that_cannot_begin_anyway_keeps_nobody_waiting() -> None:
    later = at("a", "north", not_before=NOW + timedelta(seconds=1))
    assert chosen(later, at("b", "north")) == ["b"]
    assert chosen(at("a", "north", after=("z", "running")), at("b", "north")) == ["b"]
    assert chosen(at("a", "north", "elsewhere"), at("b", "north")) == ["b"]


def test_what_is_waited_for_is_said() -> None:
    def said(waiting: Waiting, nodes: dict[str, bool] = ONLINE) -> str:
        found, sentences = choose([waiting], {}, 1, NOW, lambda: nodes)
        return "" if found else sentences[waiting.run]

    assert said(at("a", "north", not_before=NOW)) == ""
    assert said(at("a", "north", after=("z", "done"))) == ""
    assert said(at("a", "north", after=("z", "incomplete"))) == ""
    assert said(at("a", "north", after=("z", "running"))) == "Run a waits for run z, which is running."
    assert said(at("a", "north", after=("z", "failed"))).endswith("is failed; `locum resume z` goes on with that.")
    assert "whose node is not online" in said(at("a", "north"), {"north": False})
    assert "no registered node" in said(at("a", "north"), {})
    assert said(Waiting("a", frozenset({"north"}), ()), {}) == ""  # it can do without those whose stops are made


def test_nodes_are_not_asked_for_when_nobody_needs_them() -> None:
    def nodes() -> dict[str, bool]:
        raise AssertionError

    assert choose([at("a", "north", after=("z", "running"))], {}, 1, NOW, nodes)[0] == []


runs = st.lists(st.sets(st.sampled_from(SITES), min_size=1), max_size=8)


@given(queue=runs, carried=st.lists(st.sampled_from(SITES), unique=True), workers=st.integers(1, 4))
def test_never_two_runs_at_one_site_nor_more_than_workers(
    queue: list[set[str]], carried: list[str], workers: int
) -> None:
    waiting = [at(f"q{number}", *sorted(sites)) for number, sites in enumerate(queue)]
    there = {f"c{site}": at(f"c{site}", site) for site in carried}
    found, sentences = choose(waiting, there, workers, NOW, lambda: ONLINE)
    taken = [site for one in (*found, *there.values()) for site in one.sites]
    assert len(taken) == len(set(taken))
    assert len(found) <= max(0, workers - len(there))
    assert {one.run for one in found}.isdisjoint(sentences)
    if waiting and not there:
        assert found[:1] == waiting[:1]  # the first in the queue is never kept from its turn by those behind it
