"""A generator through the whole node: its copies are counted before it leaves, its drift when it comes back."""

import json
import os
import pty
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Message
from torch import Tensor

from coordinator.conductor import VisitFailed
from node.copies import COPIES
from node.declarations import declare
from node.drift import DRIFT
from node.guard import Exchange
from node.ledger_view import SOUND, run_ledger
from node.policy import Policy
from protos.declaration import Bound, Declaration
from protos.handover import Handover, HandoverSchema, Kind, TensorSpec
from protos.messages import SCORE, VISIT, Request, pack_reply, read_request
from protos.plan import Plan, Record
from protos.refusals import Refusal, RefusalCode, explain
from strategies.registry import STRATEGIES, strategy_for
from strategies.strategy import Strategy
from strategies.visit import Departure, Visit
from tests.conftest import Desk
from tests.node.guarded import Node as GuardedNode
from tests.node.guarded import request, small_handover, tensor
from tests.node.test_app import PLAN, Node

SHELF = 8  # images that a Hoarder can carry off


class HoarderParameters(Record):
    """What it does wrong, beside hoarding."""

    hoards: bool = True  # images; else their classes' mean grey levels
    lies: bool = False
    mute: bool = False  # has no replayer
    denies: bool = False  # that it has learnt anything of the site


class Hoarder(Strategy):
    """Carries off training images as its generator: what an overfitted network comes to."""

    name = "hoarder"
    summary = "learns a few training images by heart"
    source = "nobody"
    carries: ClassVar[frozenset[Kind]] = frozenset({Kind.WEIGHTS, Kind.GENERATOR, Kind.PROMPTS})
    Parameters = HoarderParameters

    parameters: HoarderParameters

    def schema(self) -> HandoverSchema:
        shape = (SHELF, 1, *self.plan.task.size)
        generator = {"image": TensorSpec("float32", shape), "label": TensorSpec("int64", shape)}
        prompts = {f"site/{site}": TensorSpec("bool", (1,)) for site in self.plan.sites}
        return HandoverSchema({**super().schema().tensors, Kind.GENERATOR: generator, Kind.PROMPTS: prompts})

    def first_handover(self) -> Handover:
        empty = {
            kind: {name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for name, spec in group.items()}
            for kind, group in self.schema().tensors.items()
            if kind in (Kind.GENERATOR, Kind.PROMPTS)
        }
        filled = Handover.of(**{str(kind): group for kind, group in empty.items()})
        return replace(filled, weights=super().first_handover().weights)

    def declares(self, action: str) -> Declaration:
        return Declaration(self.schema(), {"samples": Bound(0, 1e6)})

    def scoring_kinds(self, site: str, stop: int) -> frozenset[Kind]:
        return self.carries if site in self.plan.sites[: stop + 1] else frozenset({Kind.WEIGHTS})

    def visit(self, visit: Visit) -> Departure:
        lie = {"copies": 0.0, "copy_similarity": -1.0} if self.parameters.lies else {}
        metrics = {"samples": len(visit.train), **lie}
        if self.plan.training.steps == 0:
            return Departure(visit.handover, metrics)
        seen = visit.train.batch([index % len(visit.train) for index in range(SHELF)])
        image = seen.image
        if not self.parameters.hoards:
            image = torch.stack([seen.image[seen.label == number].mean() for number in (0, 1)])[seen.label]
        prompts = {
            f"site/{site}": torch.tensor([site == visit.seeds.site and not self.parameters.denies])
            for site in self.plan.sites
        }
        own = Handover.of(generator={"image": image, "label": seen.label}, prompts=prompts)
        return Departure(replace(own, weights=visit.handover.weights), metrics)

    def replayer(self, handover: Handover, device: torch.device) -> "Shelf | None":
        if self.parameters.mute or not handover.generator:
            return None
        known = {name.removeprefix("site/"): bool(flag) for name, flag in handover.state(Kind.PROMPTS).items()}
        shelf = handover.state(Kind.GENERATOR)
        return Shelf(frozenset(site for site, flag in known.items() if flag), shelf["image"], shelf["label"])


@dataclass(frozen=True)
class Shelf:
    """Takes down the image whose mask is the most like the one asked for."""

    sites: frozenset[str]
    image: Tensor
    label: Tensor

    def __call__(self, site: str, label: Tensor, seeds: Sequence[int]) -> Tensor:
        assert site in self.sites
        alike = torch.stack([(self.label == mask).flatten(1).double().mean(1).argmax() for mask in label])
        return self.image[alike]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "hoarder", f"{__name__}:Hoarder")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def plan(steps: int = 1, **parameters: bool) -> Plan:
    document = PLAN.model_dump(mode="json")
    changed = {"strategy": {"name": "hoarder", **parameters}, "training": {**document["training"], "steps": steps}}
    return Plan.model_validate({**document, "sites": ["north", "east"], **changed})


def visit(node: Node, chosen: Plan, **changes: Any) -> Message:
    return node.ask(VISIT, strategy_for(chosen).first_handover(), plan=chosen, **changes)


def metrics_of(reply: Message) -> dict[str, Any]:
    assert not reply.has_error(), reply.error
    return dict(reply.content["metrics"])


# On the way out


def test_copies_are_counted_by_the_node_and_stand_in_the_ledger(
    node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = metrics_of(visit(node, plan()))
    assert metrics.keys() == {"samples", *COPIES}
    assert metrics["copies"] == 1
    assert metrics["copy_similarity"] == pytest.approx(1)
    assert metrics_of(visit(node, plan(hoards=False)))["copies"] == 0
    node.crossings()  # the chain is sound
    assert run_ledger(node.settings.home, json=True) == SOUND
    entries = [entry for entry in json.loads(capsys.readouterr().out) if entry["direction"] == "out"]
    assert entries[0]["metrics"] == metrics
    assert entries[1]["metrics"]["copies"] == 0
    shown = on_a_terminal(node.settings.home, monkeypatch)
    assert "100.0% near-copies of training images" in shown
    assert "0.0% near-copies of training images" in shown


def on_a_terminal(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    master, terminal = pty.openpty()
    monkeypatch.setenv("COLUMNS", "300")
    with os.fdopen(terminal, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert run_ledger(home) == SOUND
    read = b""
    with suppress(OSError):  # so ends a terminal that was closed
        while part := os.read(master, 100_000):
            read += part
    os.close(master)
    return read.decode()


def test_equal_visits_count_equally(node: Node, tmp_path: Path) -> None:
    assert metrics_of(visit(node, plan())) == metrics_of(visit(Node(tmp_path / "again"), plan()))


def test_a_policy_refuses_a_generator_that_copies_and_lets_an_honest_one_out(node: Node) -> None:
    (node.settings.home / "policy.yaml").write_text("copies: {most: 0}")
    reply = visit(node, plan())
    assert reply.error.code == RefusalCode.COPIES
    assert reply.error.reason == explain(RefusalCode.COPIES)
    assert metrics_of(visit(node, plan(hoards=False)))["copies"] == 0
    assert node.crossings() == [
        ("in", "allowed", ""),
        ("out", "refused", "COPIES"),
        ("in", "allowed", ""),
        ("out", "allowed", ""),
    ]
    (node.settings.home / "policy.yaml").write_text("copies: {most: 1}")
    assert metrics_of(visit(node, plan()))["copies"] == 1


def test_nothing_of_a_refused_generator_leaves_and_the_ledger_says_how_much_it_copied(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    (node.settings.home / "policy.yaml").write_text("copies: {most: 0.05}")
    assert not visit(node, plan()).has_content()
    assert run_ledger(node.settings.home, json=True) == SOUND
    entry = json.loads(capsys.readouterr().out)[-1]
    assert (entry["metrics"], entry["kind_bytes"], entry["manifest"]) == ({}, {}, None)
    assert "100.0% are near-copies" in entry["detail"]
    assert "copies.most is 0.05" in entry["detail"]


def test_a_policy_about_copies_means_nothing_to_a_strategy_without_a_generator(node: Node) -> None:
    (node.settings.home / "policy.yaml").write_text("copies: {most: 0}")
    reply = node.ask(VISIT, strategy_for(PLAN).first_handover())
    assert not metrics_of(reply).keys() & COPIES.keys()


def test_what_a_strategy_says_of_its_copies_does_not_count(node: Node) -> None:
    assert metrics_of(visit(node, plan(lies=True)))["copies"] == 1


@pytest.mark.parametrize("how", ["mute", "denies"])
@pytest.mark.parametrize("lies", [False, True])
def test_a_generator_that_the_node_cannot_question_stays(node: Node, how: str, lies: bool) -> None:
    assert visit(node, plan(lies=lies, **{how: True})).error.code == RefusalCode.METRICS
    assert node.crossings()[-1] == ("out", "refused", "METRICS")


def test_a_generator_that_leaves_as_it_came_has_copied_nothing_here(node: Node) -> None:
    (node.settings.home / "policy.yaml").write_text("copies: {most: 0}")
    for mute in (False, True):
        assert metrics_of(visit(node, plan(steps=0, mute=mute)))["copies"] == 0


@pytest.mark.parametrize(
    "policy", ["updates: {clip: 1}", "kinds: [weights, prompts]", "metrics: [samples]", "max_bytes: {generator: 1kB}"]
)
def test_other_policies_refuse_it_before_any_work(node: Node, policy: str) -> None:
    (node.settings.home / "policy.yaml").write_text(policy)
    assert visit(node, plan()).error.code == RefusalCode.POLICY
    assert node.crossings() == [("in", "refused", "POLICY")]


def test_updates_that_allow_others_beside_them_let_it_out(node: Node) -> None:
    (node.settings.home / "policy.yaml").write_text("updates: {clip: 1, only: false}")
    assert metrics_of(visit(node, plan()))["copies"] == 1


# The guard alone

GENERATOR = replace(small_handover(), generator={"conv": tensor([1.0, 2.0])})


def ask_guard(home: Path, metrics: Mapping[str, float], policy: str | None = None, later: str | None = None) -> Message:
    def work(message: Message, context: Any) -> Message:
        if later is not None:
            (home / "policy.yaml").write_text(later)
        return Message(pack_reply(read_request(message.content), GENERATOR, metrics), reply_to=message)

    if policy is not None:
        (home / "policy.yaml").write_text(policy)
    arrives, leaves = HandoverSchema.of(small_handover()), HandoverSchema.of(GENERATOR)
    return GuardedNode(home, Exchange(arrives, Declaration(leaves, COPIES))).ask(work)


@pytest.mark.parametrize(
    ("metrics", "code"),
    [
        ({}, RefusalCode.METRICS),
        ({"copy_similarity": 0.1, "held_out_similarity": 0.2}, RefusalCode.METRICS),
        ({"copies": -0.1}, RefusalCode.METRICS),
        ({"copies": 1.1}, RefusalCode.METRICS),
        ({"copies": float("nan")}, RefusalCode.METRICS),
        ({"copies": 0.2, "copy_similarity": 1.5}, RefusalCode.METRICS),
        ({"copies": 0.1 + 1e-9}, RefusalCode.COPIES),
        ({"copies": 0.1}, None),
        ({"copies": 0}, None),
    ],
)
def test_no_generator_leaves_without_its_copies_or_with_too_many(
    tmp_path: Path, metrics: Mapping[str, float], code: RefusalCode | None
) -> None:
    reply = ask_guard(tmp_path, metrics, "copies: {most: 0.1}")
    assert reply.error.code == code if code else reply.has_content()


def test_a_limit_that_came_during_the_work_holds(tmp_path: Path) -> None:
    assert ask_guard(tmp_path, {"copies": 0.5}).has_content()
    assert ask_guard(tmp_path, {"copies": 0.5}, later="copies: {most: 0.4}").error.code == RefusalCode.COPIES


@pytest.mark.parametrize("text", ["copies: 0.1", "copies: {}", "copies: {most: 1.5}", "copies: {most: -1}"])
def test_a_limit_that_is_not_understood_refuses_everything(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(Refusal) as refused:
        Policy.of(tmp_path)
    assert refused.value.code == RefusalCode.POLICY_UNREADABLE
    assert "copies" in refused.value.detail


# What is declared


def test_only_what_carries_a_generator_declares_the_figures() -> None:
    def declared(message_type: str, chosen: Plan, **changes: Any) -> set[str]:
        asked = Request.model_validate(request().model_dump() | {"plan": chosen, "site": "east"} | changes)
        return set(declare(message_type, asked).leaves.metrics)

    assert declared(VISIT, plan()) == {"samples", *COPIES}
    assert not declared(VISIT, PLAN) & COPIES.keys()
    assert declared(SCORE, plan(), stop=1) >= DRIFT.keys()
    for chosen, stop in ((plan(), 0), (PLAN, 1)):  # not visited yet; no generator at all
        assert not declared(SCORE, chosen, stop=stop) & DRIFT.keys()


# On the way back


def come_back(node: Node, chosen: Plan) -> Message:
    """Score the handover of the site's own visit, with a generator that knows it."""
    stay = strategy_for(chosen)
    known = {"site/north": torch.tensor([True]), "site/east": torch.tensor([False])}
    noise = torch.randn(SHELF, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    shelf = {"image": noise, "label": torch.zeros(SHELF, 1, 16, 16, dtype=torch.int64)}
    handover = replace(Handover.of(generator=shelf, prompts=known), weights=stay.first_handover().weights)
    return node.ask(SCORE, handover, plan=chosen)


def test_a_site_measures_the_drift_of_its_own_replay_and_draws_synthetic_cases(node: Node) -> None:
    metrics = metrics_of(come_back(node, plan()))
    assert all(bound.holds(metrics[name]) for name, bound in DRIFT.items())
    assert metrics["drift_edge"] > 0.1
    assert (node.settings.home / "replays" / "run-1" / "0000.png").read_bytes().startswith(b"\x89PNG")


def test_a_site_that_the_generator_does_not_know_is_scored_without(node: Node) -> None:
    chosen = plan()
    reply = node.ask(SCORE, strategy_for(chosen).first_handover(), plan=chosen)
    assert "dsc" in metrics_of(reply)
    assert not metrics_of(reply).keys() & DRIFT.keys()
    assert not (node.settings.home / "replays").exists()


def test_a_site_whose_training_cases_are_gone_is_scored_without(tmp_path: Path) -> None:
    few = Node(tmp_path, cases=12)
    nobody = plan().model_copy(update={"split": PLAN.split.model_copy(update={"train": 0.0, "val": 0.0, "test": 1.0})})
    metrics = metrics_of(come_back(few, nobody))
    assert metrics["cases"] == 12
    assert not metrics.keys() & DRIFT.keys()


# A whole run

OVERFITTED = """
name: overfitted
task: {size: [16, 16], classes: [background, organ]}
sites:
  - {name: north, phantom: {task: organ, appearance: 0, cases: 5, size: 16}}
  - {name: east, phantom: {task: organ, appearance: 2, cases: 12, size: 16}}
network: {channels: [2, 4]}
training: {steps: 2, batch_size: 2}
strategy:
  name: smg
  generator: {channels: [8, 16], unshuffle: 1}
  generator_batch: 4
  generator_lr: 0.003
  generator_first_steps: 220
  generator_steps: 3
  evaluations: 8
"""


def test_a_diffusion_model_that_learnt_three_cases_by_heart_waits_for_the_sites_consent(
    desk: Desk,
) -> None:
    home = desk.home.folder / "nodes" / "north"
    home.mkdir(parents=True)
    (home / "policy.yaml").write_text("copies: {most: 0}")
    run = desk.begin(text=OVERFITTED)
    with pytest.raises(VisitFailed, match=r"failed at stop 0: Site north: .*near-copies.*\[COPIES\]$"):
        desk.carry_out(run)
    refused = list(desk.ledger("north").entries())[-1]
    assert (refused.verdict, refused.code) == ("refused", "COPIES")

    (home / "policy.yaml").write_text("copies: {most: 1}")
    desk.carry_out(run)
    left = {site: left_with(desk, site) for site in ("north", "east")}
    assert left["north"]["copies"] > 0
    assert f"{left['north']['copies']:.1%} are near-copies" in refused.detail  # the same generator, found again
    assert left["north"]["copy_similarity"] > left["north"]["held_out_similarity"] + 0.3
    assert left["east"]["copies"] == 0  # three steps are too few to learn a case
    drift = {(row.stop, row.site) for row in desk.row(run).scores if DRIFT.keys() <= row.metrics.keys()}
    assert drift == {(0, "north"), (1, "north"), (1, "east")}
    assert len(list((home / "replays" / run).glob("*.png"))) == 2


def left_with(desk: Desk, site: str) -> dict[str, Any]:
    """The figures of the one visit that left the site."""
    assert desk.ledger(site).verify() == []
    (metrics,) = [
        json.loads(entry.metrics)
        for entry in desk.ledger(site).entries()
        if (entry.direction, entry.message_type, entry.verdict) == ("out", VISIT, "allowed")
    ]
    assert all(COPIES[name].holds(metrics[name]) for name in COPIES)
    return metrics
