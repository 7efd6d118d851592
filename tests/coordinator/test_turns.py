"""Whose turn it is: by time, order, sites and workers."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scenario import Patience, SkipInstead
from coordinator.turns import LEAST_SECONDS, LOOKED_AT, Turns, Waiting, choose, enqueue, queued
from tests.conftest import Desk

NOW = datetime(2031, 5, 17, 22, 30, tzinfo=UTC)
SITES = ("north", "east", "south")
ONLINE = dict.fromkeys(SITES, True)


def at(run: str, *sites: str, **more: object) -> Waiting:
    return Waiting(run, frozenset(sites), tuple(sites), **more)  # type: ignore[arg-type]


def chosen(*queue: Waiting, carried: tuple[Waiting, ...] = (), workers: int = 9) -> list[str]:
    turns = choose(queue, {one.run: one for one in carried}, workers, NOW, lambda: ONLINE)
    assert {one.run for one in queue} == {one.run for one in turns.chosen} | set(turns.reasons)
    return [one.run for one in turns.chosen]


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
        turns = choose([waiting], {}, 1, NOW, lambda: nodes)
        return "" if turns.chosen else turns.reasons[waiting.run]

    assert said(at("a", "north", not_before=NOW)) == ""
    assert said(at("a", "north", after=("z", "done"))) == ""
    assert said(at("a", "north", after=("z", "incomplete"))) == ""
    assert said(at("a", "north", after=("z", "running"))) == "run z, which is running"
    assert said(at("a", "north", after=("z", "failed"))).endswith("is failed; `locum resume z` goes on with that")
    assert "whose node is not online" in said(at("a", "north"), {"north": False})
    assert "no registered node" in said(at("a", "north"), {})
    assert said(Waiting("a", frozenset({"north"}), ()), {}) == ""  # it can do without those whose stops are made


def test_nodes_are_not_asked_for_when_nobody_needs_them() -> None:
    def nodes() -> dict[str, bool]:
        raise AssertionError

    assert choose([at("a", "north", after=("z", "running"))], {}, 1, NOW, nodes).chosen == []


# Patience


def patient(then: str | SkipInstead, seconds: float, since: float | None = None, **more: object) -> Waiting:
    """A run that needs north, which has been away for so many seconds at the last look, and east."""
    away = {} if since is None else {"north": NOW - timedelta(seconds=since)}
    patience = {"north": Patience(wait=seconds, then=then)}  # type: ignore[arg-type]
    return at("a", "north", "east", patience=patience, away_since=away, **more)


def without_north(waiting: Waiting) -> Turns:
    return choose([waiting], {}, 9, NOW, lambda: {"north": False, "east": True})


def test_whom_is_waited_for_and_until_when_is_said() -> None:
    turns = without_north(patient("fail", 90))
    assert (turns.chosen, turns.failed) == ([], {})
    assert turns.reasons["a"] == (
        "site north, whose node is not online, until 2031-05-17T22:31:30+00:00 and then fails; start it there"
    )
    assert turns.away == {"a": {"north": NOW}}  # from now on
    skipping = patient(SkipInstead(skip="Dr. Roe"), 90, since=30)
    assert "until 2031-05-17T22:31:00+00:00 and then goes on without it" in without_north(skipping).reasons["a"]
    two = choose([patient("wait", 1, since=9000)], {}, 9, NOW, dict)
    assert two.reasons["a"] == (
        "site north, which has no registered node, as long as it takes; `locum node add` lets one in; and for site "
        "east, which has no registered node, until 2031-05-17T23:00:00+00:00 and then fails; `locum node add` lets one "
        "in"
    )


def test_patience_that_ends_fails_the_run_or_lets_it_go_on_without() -> None:
    assert without_north(patient("fail", 90, since=89)).failed == {}
    failed = without_north(patient("fail", 90, since=90))
    assert (failed.chosen, failed.reasons) == ([], {})
    assert failed.failed["a"] == (
        "Run a failed: Site north: it was away for more than 1.5 min; resume the run when it is back. [AWAY]"
    )
    without = patient(SkipInstead(skip="Dr. Roe"), 90, since=90)
    turns = without_north(without)
    assert (turns.chosen, turns.given_up) == ([without], {"a": ("north",)})


def test_a_site_that_is_back_is_waited_for_anew_the_next_time() -> None:
    back = choose([patient("fail", 90, since=900)], {"c": at("c", "east")}, 9, NOW, lambda: ONLINE)
    assert (back.away, back.failed) == ({"a": {}}, {})


def test_no_patience_is_lost_before_it_is_a_runs_turn() -> None:
    turns = without_north(patient("fail", 90, since=900, not_before=NOW + timedelta(hours=1)))
    assert (turns.failed, turns.away) == ({}, {})
    assert turns.reasons["a"].startswith("its time")


def test_no_patience_begins_nor_ends_while_something_else_is_missing_too() -> None:
    """A run whose worker or whose other site is busy would not begin if north came back."""
    for carried, workers in ((at("c", "elsewhere"), 1), (at("c", "east"), 9)):
        for then in ("fail", SkipInstead(skip="Dr. Roe")):
            for since, kept in ((None, {}), (900, {"north": NOW - timedelta(seconds=900)})):
                one = patient(then, 90, since=since)  # type: ignore[arg-type]
                turns = choose([one], {"c": carried}, workers, NOW, lambda: {"north": False, "east": True})
                assert (turns.chosen, turns.failed, turns.away) == ([], {}, {"a": kept})
                assert "north" not in turns.reasons["a"]


def test_runs_that_cannot_begin_keep_nobody_waiting_however_many_they_are() -> None:
    """But nobody looks at all of a queue of which no worker can carry out any more."""
    later = [at(f"a{number}", "north", not_before=NOW + timedelta(days=7)) for number in range(2 * LOOKED_AT)]
    assert chosen(*later, at("b", "north")) == ["b"]
    away = [at(f"a{number}", "elsewhere") for number in range(2 * LOOKED_AT)]
    assert chosen(*away, at("b", "north")) == ["b"]
    full = choose([*later, at("b", "north")], {"c": at("c", "east")}, 1, NOW, lambda: ONLINE)
    assert (full.chosen, len(full.reasons)) == ([], LOOKED_AT)


def test_the_whole_queue_is_read_in_its_order(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.turns.LOOKED_AT", 2)
    store = desk.home.store()
    runs = [desk.begin(f"seed={seed}") for seed in (3, 1, 4, 2)]
    assert list(queued(store)) == []
    for count, run in enumerate(runs, 1):
        with store.transaction() as session:
            enqueue(session, [run], not_before=None, after=None)
        assert [one.run for one in queued(store)] == runs[:count]


def test_no_patience_is_too_short_for_a_node_to_sign_on_again() -> None:
    assert without_north(patient("fail", 0, since=LEAST_SECONDS - 1)).failed == {}
    assert without_north(patient("fail", 0, since=LEAST_SECONDS)).failed


runs = st.lists(st.sets(st.sampled_from(SITES), min_size=1), max_size=8)


@given(queue=runs, carried=st.lists(st.sampled_from(SITES), unique=True), workers=st.integers(1, 4))
def test_never_two_runs_at_one_site_nor_more_than_workers(
    queue: list[set[str]], carried: list[str], workers: int
) -> None:
    waiting = [at(f"q{number}", *sorted(sites)) for number, sites in enumerate(queue)]
    there = {f"c{site}": at(f"c{site}", site) for site in carried}
    turns = choose(waiting, there, workers, NOW, lambda: ONLINE)
    found = turns.chosen
    taken = [site for one in (*found, *there.values()) for site in one.sites]
    assert len(taken) == len(set(taken))
    assert len(found) <= max(0, workers - len(there))
    assert {one.run for one in found}.isdisjoint(turns.reasons)
    if waiting and not there:
        assert found[:1] == waiting[:1]  # the first in the queue is never kept from its turn by those behind it
