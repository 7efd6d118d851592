"""EWC: its penalty's closed form, fading importance, and many anchors in one."""

import pytest
import torch

from protos.handover import Kind
from strategies.registry import strategy_for
from strategies.regularisation.ewc import log_likelihood, mean_anchor
from strategies.regularisation.importance import arrived_importance, measured
from tests.strategies.harness import CPU, Blobs, conduct, make_plan, make_sites
from tests.strategies.stays import important_alike, visit_at

BATCH = Blobs("A", 4).batch([0, 1])


def test_the_pull_is_half_lambda_times_the_weighted_distance() -> None:
    plan = make_plan("ewc", parameters={"strength": 7.0})
    strategy, plain = strategy_for(plan), strategy_for(make_plan("finetune"))
    visit = visit_at(plan, important_alike(strategy.first_handover(), 0.25))
    model = strategy.loaded(visit.handover, CPU)
    notes = strategy.arrive(visit, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    count = sum(p.numel() for p in model.parameters())
    value, free = strategy.loss(model, BATCH, notes), plain.loss(model, BATCH, None)
    assert value.item() - free.item() == pytest.approx(7.0 / 2 * 0.25 * 0.25 * count, rel=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_importance_of_earlier_sites_fades(decay: float) -> None:
    plan = make_plan("ewc", steps=0, parameters={"decay": decay})
    sites = make_sites(plan)
    *_, last = conduct(plan, sites)
    strategy = strategy_for(plan)
    model = strategy.loaded(last, CPU)
    expected: dict[str, torch.Tensor] = {}
    for samples in sites.values():
        own = measured(model, log_likelihood, visit_at(plan, samples=samples), torch.square)
        expected = {name: decay * expected.get(name, torch.zeros(())) + value for name, value in own.items()}
    found = arrived_importance(last).omega
    for name, value in expected.items():
        assert (found[name] >= 0).all()
        torch.testing.assert_close(found[name], value)


def test_one_mean_anchor_stands_for_all() -> None:
    """Σ F_i (θ - θ_i)² has the gradient of (Σ F_i)(θ - θ̄)², wherever it is taken."""
    generator = torch.Generator().manual_seed(0)
    shape = (5, 4)
    anchors = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(6)]
    fishers = [torch.rand((5, 1), generator=generator, dtype=torch.float64) for _ in range(6)]
    fishers[0][0] = fishers[1][0] = 0  # a parameter of no importance at first
    total, mean = torch.zeros(5, 1, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for anchor, fisher in zip(anchors, fishers, strict=True):
        mean = mean_anchor(mean, total, anchor, total + fisher)
        total = total + fisher
    theta = torch.randn(shape, generator=generator, dtype=torch.float64)
    of_all = sum(f * (theta - a) for f, a in zip(fishers, anchors, strict=True))
    torch.testing.assert_close(total * (theta - mean), of_all)


def test_with_every_anchor_earlier_sites_pull_to_where_they_left_the_weights() -> None:
    """The anchor is the mean of where each site left the weights, weighted by what the site added to the importance."""
    plan = make_plan("ewc", sites=("A", "B", "C"), parameters={"anchors": "every", "strength": 0.0})
    handovers = conduct(plan, make_sites(plan))
    left = [handover.state(Kind.WEIGHTS) for handover in handovers]
    fisher = [arrived_importance(handover).omega for handover in handovers]
    last = handovers[-1].state(Kind.IMPORTANCE)
    for name, total in fisher[-1].items():
        own = [fisher[0][name], fisher[1][name] - fisher[0][name], fisher[2][name] - fisher[1][name]]
        weighted = sum(f * state[name] for f, state in zip(own, left, strict=True))
        important = total > 1e-3 * total.max()
        torch.testing.assert_close(
            last[f"anchor/{name}"][important], (weighted / total)[important], rtol=1e-3, atol=1e-5
        )


def test_the_first_anchor_is_where_the_first_site_left_the_weights() -> None:
    plan = make_plan("ewc", sites=("A",), parameters={"anchors": "every"})
    (handover,) = conduct(plan, make_sites(plan))
    for name, weight in handover.state(Kind.WEIGHTS).items():
        assert torch.equal(handover.state(Kind.IMPORTANCE)[f"anchor/{name}"], weight)


def test_the_anchors_take_the_same_room_however_many_sites_there_are() -> None:
    sizes = {
        strategy_for(make_plan("ewc", sites=sites, parameters={"anchors": "every"})).schema().nbytes()
        for sites in (("A",), ("A", "B", "C", "D"))
    }
    assert len(sizes) == 1
