"""The node's ClientApp itself, on a phantom: describe, visit, score, and whatever else is asked of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from node.app import app
from node.data.cache import SiteCache
from node.data.site import SiteData
from node.database import open_database
from node.ledger import Ledger
from node.settings import SiteSettings
from protos.handover import Handover
from protos.introduction import Introduction
from protos.messages import DESCRIBE, INTRODUCE, SCORE, VISIT, Request, pack_request, read_handover
from protos.plan import PhantomSite, Plan, StrategyChoice
from protos.refusals import RefusalCode, explain
from protos.software import installed
from strategies.registry import strategy_for
from tests.node.guarded import instruction, over_the_wire

PLAN = Plan.model_validate(
    {
        "task": {"size": (16, 16), "classes": ("background", "organ")},
        "strategy": {"name": "finetune"},
        "network": {"channels": (4, 8)},
        "training": {"steps": 3, "batch_size": 2, "checkpoint_every": 1},
        "sites": ("north",),
    }
)


class Node:
    """The app at one phantom site."""

    def __init__(self, home: Path, cases: int = 12) -> None:
        self.settings = SiteSettings(
            name="north", home=home, phantom=PhantomSite(task="organ", cases=cases, size=16), durable=False
        )

    def ask(self, message_type: str, handover: Handover | None = None, **changes: Any) -> Message:
        request = Request(run="run-1", site="north", plan=PLAN).model_copy(update=changes)
        context = Context(1, 7, {"site": self.settings.model_dump_json()}, RecordDict(), {})
        return over_the_wire(app(over_the_wire(instruction(pack_request(request, handover), message_type)), context))

    def crossings(self) -> list[tuple[str, str, str]]:
        ledger = Ledger(open_database(self.settings.home))
        assert ledger.verify() == []
        return [(entry.direction, entry.verdict, entry.code) for entry in ledger.entries() if entry.direction != "here"]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_describes_its_cases_and_on_demand_its_samples(node: Node) -> None:
    counts = node.ask(DESCRIBE, args={"samples": 0}).content["metrics"]
    assert sum(counts[part] for part in ("train", "val", "test")) == 12
    assert "samples" not in counts
    assert node.ask(DESCRIBE, args={"samples": 1}).content["metrics"]["samples"] == counts["train"]
    assert node.ask(DESCRIBE, args={"samples": 0}, unseen=True).content["metrics"]["test"] == 12


def test_introduces_itself_by_its_software_and_what_its_policy_changes(node: Node) -> None:
    plain = Introduction.of(node.ask(INTRODUCE).content["metrics"])
    assert (plain.software.locum, plain.software.code) == (installed().locum, installed().code)
    assert plain.policy == {}
    policy = node.settings.home / "policy.yaml"
    policy.write_text(
        "kinds: [weights]\nmemory: {cases: 3}\nupdates: {clip: 0.5, noise: 2, delta: 1.0e-5, epsilon: 9}\n"
    )
    told = Introduction.of(node.ask(INTRODUCE).content["metrics"])
    assert told.policy == {"updates": {"clip": 0.5, "noise": 2.0}, "memory": {"cases": 3}}
    policy.write_text("metrics: [train, val, test, samples]")
    assert node.ask(INTRODUCE).error.code == RefusalCode.POLICY
    assert node.ask(DESCRIBE, args={"samples": 0}).has_content()


def test_a_visit_returns_trained_weights_and_leaves_checkpoints_until_it_is_scored(node: Node) -> None:
    first = strategy_for(PLAN).first_handover()
    reply = node.ask(VISIT, first)
    trained = read_handover(reply.content)
    assert trained is not None
    assert trained.weights.keys() == first.weights.keys()
    assert trained != first
    folder = node.settings.home / "checkpoints" / "run-1"
    assert [path.name for path in folder.iterdir()] == ["0-0.safetensors"]
    scores = node.ask(SCORE, trained).content["metrics"]
    assert 0 <= scores["dsc"] <= 1
    assert not folder.exists()
    assert node.crossings() == [("in", "allowed", ""), ("out", "allowed", "")] * 2


def test_images_are_prepared_with_the_plans_threads_and_not_the_machines(node: Node) -> None:
    """Else the first message of a process would see other bits than the later ones."""
    torch.set_num_threads(2)
    node.ask(DESCRIBE, args={"samples": 1})
    assert torch.get_num_threads() == PLAN.training.threads == 1


@pytest.mark.parametrize("message_type", ["train", "query.steal", "evaluate.visit", "system.unknown"])
def test_a_message_that_no_handler_answers_is_refused_by_the_guard(node: Node, message_type: str) -> None:
    reply = node.ask(message_type)
    assert reply.error.code == RefusalCode.MESSAGE_TYPE
    assert node.crossings() == [("in", "refused", "MESSAGE_TYPE")]


def test_a_plan_that_the_site_cannot_serve_is_refused_by_code(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    tiny = Node(node.settings.home / "tiny", cases=1)
    reply = tiny.ask(SCORE, strategy_for(PLAN).first_handover())
    assert reply.error.code == RefusalCode.SITE_DATA
    assert "split.test" in caplog.text  # the node's own people learn what to do
    assert "split.test" not in (reply.error.reason or "")


def test_an_action_of_another_strategy_is_refused(node: Node) -> None:
    reply = node.ask(VISIT, strategy_for(PLAN).first_handover(), action="gradient")
    assert reply.error.code == RefusalCode.PLAN


REPLAY = PLAN.model_copy(update={"strategy": StrategyChoice(name="replay")})
GRADIENT = {"rehearse": 0, "position": 0, "count": 2, "update": 0}


def ask_replay(node: Node, **args: int) -> Message:
    changes: dict[str, Any] = {"plan": REPLAY, "action": "gradient", "args": GRADIENT | args}
    return node.ask(VISIT, strategy_for(REPLAY).first_handover(), **changes)


@pytest.mark.parametrize(("policy", "kept"), [("kinds: [weights]", 6), ("memory: {cases: 2}", 2)])
def test_a_site_rehearses_on_what_its_policy_lets_a_run_keep(node: Node, policy: str, kept: int) -> None:
    (node.settings.home / "policy.yaml").write_text(policy)
    assert ask_replay(node).has_content()
    assert ask_replay(node, rehearse=1).content["metrics"]["samples"] == kept


def test_a_site_whose_policy_forbids_rehearsal_keeps_nothing(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    (node.settings.home / "policy.yaml").write_text("memory: {cases: 0}")
    for rehearse in (0, 1):
        assert ask_replay(node, rehearse=rehearse).error.code == RefusalCode.POLICY
    assert node.crossings() == [("in", "allowed", ""), ("out", "refused", "POLICY")] * 2
    assert "memory.cases is 0" in caplog.text
    assert not (node.settings.home / "memory").exists()


def test_a_site_that_lost_what_it_kept_says_so_with_a_code_of_its_own(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask_replay(node).has_content()
    for path in (node.settings.home / "memory").rglob("*.*"):
        path.unlink()
    reply = ask_replay(node, rehearse=1)
    assert reply.error.code == RefusalCode.MEMORY
    assert reply.error.reason == explain(RefusalCode.MEMORY)
    assert "run-1.json is missing" in caplog.text
    assert node.crossings()[-1] == ("out", "failed", "MEMORY")


def test_the_cache_keeps_what_fits_and_always_the_one_in_use() -> None:
    settings = Node(Path("unused")).settings
    opened: list[int] = []

    def opener(number: int) -> SiteData:
        opened.append(number)
        return SiteData(settings, PLAN)

    cache = SiteCache(budget=1)
    for number in (1, 1, 2, 2):
        cache.get(number, lambda number=number: opener(number)).samples("train")
    assert opened == [1, 2]
    cache.get(1, lambda: opener(1))
    assert opened == [1, 2, 1]  # 2 was larger than the budget

    roomy = SiteCache(budget=2**20)
    for number in (3, 4, 3, 4):
        roomy.get(number, lambda number=number: opener(number)).samples("train")
    assert opened[3:] == [3, 4]
