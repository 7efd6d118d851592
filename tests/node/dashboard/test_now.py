"""What waits next, in words: of runs that are not over, and of what has not left yet."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.dashboard.reading import open_reader
from node.dashboard.visits import Outlook, RunKnown, outlook, runs
from protos.plan import StrategyChoice


@pytest.fixture(scope="module")
def known(lived_in: Path) -> RunKnown:
    (found,) = runs(open_reader(lived_in))
    return found


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"visited": [], "scored": None}, "has not learnt here yet; it comes when the sites before are done."),
        ({"visited": [], "scored": None, "learning": True}, "The model is learning here now."),
        ({"visited": [], "scored": None, "held": True}, "has learnt here, and what it learnt has not left yet."),
        ({"visited": [0], "scored": None}, "its scoring comes next."),
        ({"visited": [0], "scored": 0}, "it is scored here again after every further stop."),
    ],
)
def test_what_is_to_come_of_a_tour(known: RunKnown, how: dict[str, Any], said: str) -> None:
    sentence = Outlook(known, **how).sentence("north")
    assert sentence.startswith("This site is number 1 of 3 in its order. The model ")
    assert sentence.endswith(said)
    assert not Outlook(known, **how).over


def test_a_run_at_all_sites_at_once_is_over_with_its_one_stop(known: RunKnown) -> None:
    plan = known.plan.model_copy(update={"strategy": StrategyChoice(name="joint")})
    joint = replace(known, plan=plan)
    assert Outlook(joint, [], None, learning=True).sentence("north") == (
        "The model learns at 3 sites at once, in rounds. The model is learning here now."
    )
    assert Outlook(joint, [0], 0).over
    assert not Outlook(known, [0], 0).over


def test_a_run_that_is_over_waits_for_nothing(known: RunKnown, lived_in: Path) -> None:
    assert Outlook(known, [0], 2).over
    assert outlook(open_reader(lived_in)) == []
    unseen = replace(known, unseen=True)
    assert "only scored" in Outlook(unseen, [], 1).sentence("island")
