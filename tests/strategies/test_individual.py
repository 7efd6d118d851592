"""A model per site: orders do not matter, and which model scores which site."""

from itertools import permutations

from strategies.registry import strategy_for
from tests.strategies.harness import conduct, make_plan, make_sites


def test_the_order_of_sites_leaves_every_sites_model_as_it_is() -> None:
    learnt = []
    for order in permutations("ABC"):
        plan = make_plan("individual", order)
        learnt.append(dict(zip(order, conduct(plan, make_sites(plan)), strict=True)))
    assert all(models == learnt[0] for models in learnt)
    assert len({handover.digest() for handover in learnt[0].values()}) == 3


def test_other_sites_do_not_matter() -> None:
    alone, among = make_plan("individual", ("B",)), make_plan("individual", ("A", "B", "C"))
    assert conduct(alone, make_sites(alone))[0] == conduct(among, make_sites(among))[1]


def test_a_site_is_scored_with_its_own_model_once_it_has_one() -> None:
    strategy = strategy_for(make_plan("individual", ("A", "B", "C")))
    table = {site: [strategy.model_for(site, stop) for stop in range(3)] for site in ("A", "B", "C", "unseen")}
    assert table == {"A": [0, 0, 0], "B": [None, 1, 1], "C": [None, None, 2], "unseen": [None, None, None]}
