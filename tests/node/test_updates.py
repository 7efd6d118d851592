"""A site that asks for clipped and noised updates lets no other leave, and says in its ledger what they come to."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from scipy import stats

from node.database import open_database
from node.decisions import held_handovers, leakage_summary, release
from node.guard import Exchange
from node.ledger import Ledger
from node.privacy import epsilon
from node.updates import KEY_FILE, SiteNoise, noise_key
from protos.declaration import Declaration
from protos.handover import UPDATE, Handover, HandoverSchema, Kind
from protos.messages import DESCRIBE, SCORE, VISIT, Request, pack_reply, read_handover
from protos.plan import StrategyChoice
from protos.refusals import RefusalCode
from strategies.baselines.joint import Joint
from strategies.registry import strategy_for
from strategies.visit import Departure, Visit
from tests.node import guarded
from tests.node.test_app import PLAN, Node

JOINT = PLAN.model_copy(update={"strategy": StrategyChoice(name="joint")})
FIRST = strategy_for(JOINT).first_handover()
ARGS = {"position": 0, "count": 2, "update": 0}
CLIPPED = "updates: {clip: 0.001}"
NOISED = "updates: {clip: 0.001, noise: 20, delta: 1.0e-5}"


class Hospital(Node):
    """The app at a phantom site with a policy."""

    def policy(self, text: str) -> None:
        self.settings.home.mkdir(exist_ok=True)
        (self.settings.home / "policy.yaml").write_text(text)

    def gradient(self, handover: Handover = FIRST, **changes: Any) -> Message:
        return self.ask(VISIT, handover, **({"plan": JOINT, "action": "gradient", "args": ARGS} | changes))

    def ledger(self) -> Ledger:
        return Ledger(open_database(self.settings.home))

    def releases(self) -> list[dict[str, Any]]:
        return [json.loads(entry.privacy) for entry in self.ledger().entries() if entry.privacy]


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path / "home")


def flat(reply: Message) -> torch.Tensor:
    handover = read_handover(reply.content)
    assert handover is not None
    return torch.cat([tensor.double().flatten() for tensor in handover.state(Kind.WEIGHTS).values()])


# What leaves


def test_without_a_policy_the_plain_gradient_leaves_with_its_loss(hospital: Hospital) -> None:
    reply = hospital.gradient()
    assert set(reply.content["metrics"]) == {"samples", "loss"}
    assert flat(reply).norm() > 0.01
    assert hospital.releases() == []
    assert not (hospital.settings.home / KEY_FILE).exists()


def test_a_clipped_update_leaves_within_the_bound_and_without_the_loss(hospital: Hospital) -> None:
    hospital.policy(CLIPPED)
    reply = hospital.gradient()
    assert set(reply.content["metrics"]) == {"samples"}
    assert 0 < flat(reply).norm() <= 0.001 * (1 + 1e-5)
    assert hospital.releases() == [{"clip": 0.001, "noise": 0, "delta": None, "epsilon": None, "releases": {"0.0": 1}}]


def test_noise_is_added_and_the_ledger_says_what_it_comes_to(hospital: Hospital) -> None:
    hospital.policy(NOISED)
    replies = [hospital.gradient(round=number, run=f"run-{number % 2}") for number in range(3)]
    std = 20 * 0.001 / ARGS["count"]
    for reply in replies:
        assert float(flat(reply).std()) == pytest.approx(std, rel=0.1)
    assert [release["epsilon"] for release in hospital.releases()] == [epsilon({20.0: n}, 1e-5) for n in (1, 2, 3)]
    assert hospital.ledger().verify() == []


def test_the_same_request_has_the_same_answer_and_any_other_has_noise_of_its_own(hospital: Hospital) -> None:
    hospital.policy(NOISED)
    once = flat(hospital.gradient())
    assert torch.equal(flat(hospital.gradient()), once)
    assert torch.equal(flat(hospital.gradient(run="run-of-the-same-scenario")), once)
    moved = Handover.of(
        weights={name: t + 1e-6 if t.is_floating_point() else t for name, t in FIRST.state(Kind.WEIGHTS).items()}
    )
    others = [
        hospital.gradient(round=1),
        hospital.gradient(args=ARGS | {"update": 1}),
        hospital.gradient(moved),
    ]
    hospital.policy(NOISED.replace("20", "20.001"))
    others.append(hospital.gradient())
    elsewhere = Hospital(hospital.settings.home.parent / "elsewhere")  # the same cases, another key
    elsewhere.policy(NOISED)
    others.append(elsewhere.gradient())
    for other in map(flat, others):
        assert abs(float(torch.corrcoef(torch.stack([once, other]))[0, 1])) < 5 / len(once) ** 0.5
    assert [release["releases"] for release in hospital.releases()][-1] == {"20.0": 6, "20.001": 1}  # repeats count


def visit(hospital: Hospital, strategy: str, **parameters: Any) -> Message:
    """The first request of the first stop, as the coordinator would make it."""
    plan = PLAN.model_copy(update={"strategy": StrategyChoice(name=strategy, **parameters)})
    installed = strategy_for(plan)
    stop = installed.itinerary()[0]
    gathering = installed.gather(stop, installed.first_handover(), {"north": 8}, lambda replies: Handover())
    ((_, ask),) = gathering.asks(0)
    return hospital.ask(VISIT, ask.handover, plan=plan, action=stop.action, args=dict(ask.args))


UNPROTECTED: list[dict[str, Any]] = [
    {"strategy": "finetune"},
    {"strategy": "joint-fedavg"},
    {"strategy": "ewc"},
    {"strategy": "replay", "mode": "interleaved", "local_steps": 1},  # weights after one step are a gradient
    {"strategy": "replay", "mode": "interleaved", "local_steps": 1, "optimizer": "resets"},
]


@pytest.mark.parametrize("choice", UNPROTECTED, ids=lambda choice: "-".join(map(str, choice.values())))
@pytest.mark.parametrize("policy", [CLIPPED, NOISED], ids=["clipped", "noised"])
def test_nothing_else_that_is_learnt_leaves_unless_the_policy_says_so(
    hospital: Hospital, policy: str, choice: dict[str, Any]
) -> None:
    hospital.policy(policy)
    assert visit(hospital, **choice).error.code == RefusalCode.POLICY
    assert hospital.crossings() == [("in", "refused", "POLICY")]  # on the way in: no work was done
    *_, entry = hospital.ledger().entries()
    assert "updates.only: false" in entry.detail
    hospital.policy(f"{policy[:-1]}, only: false}}")
    assert set(visit(hospital, **choice).content["metrics"]) >= {"samples", "steps", "loss_last"}
    assert hospital.releases() == []  # epsilon does not speak of it


def test_updates_alone_do_not_keep_a_site_from_scoring_and_describing(hospital: Hospital) -> None:
    hospital.policy(NOISED)
    assert hospital.ask(SCORE, strategy_for(PLAN).first_handover()).has_content()
    assert hospital.ask(DESCRIBE, args={"samples": 1}).has_content()
    assert visit(hospital, "replay").has_content()


# What does not


def plain(strategy: Joint, visit: Visit, honest: Callable[..., Departure]) -> Departure:
    return honest(strategy, replace(visit, privacy=None))


def plain_after_a_release(strategy: Joint, visit: Visit, honest: Callable[..., Departure]) -> Departure:
    honest(strategy, visit)
    return honest(strategy, replace(visit, privacy=None))


def louder(strategy: Joint, visit: Visit, honest: Callable[..., Departure]) -> Departure:
    made = honest(strategy, visit)
    return Departure(
        Handover.of(weights={name: 2 * t for name, t in made.handover.state(Kind.WEIGHTS).items()}), made.metrics
    )


def with_loss(strategy: Joint, visit: Visit, honest: Callable[..., Departure]) -> Departure:
    made = honest(strategy, visit)
    return Departure(made.handover, {**made.metrics, "loss": 0.5})


@pytest.mark.parametrize("strategy", [plain, plain_after_a_release, louder, with_loss])
@pytest.mark.parametrize("policy", [CLIPPED, NOISED], ids=["clipped", "noised"])
def test_an_update_that_is_not_as_asked_does_not_leave(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, strategy: Callable[..., Departure], policy: str
) -> None:
    hospital.policy(policy)
    honest = Joint.visit
    monkeypatch.setattr(Joint, "visit", lambda self, visit: strategy(self, visit, honest))
    reply = hospital.gradient()
    assert reply.error.code == RefusalCode.UNPROTECTED
    assert hospital.crossings() == [("in", "allowed", ""), ("out", "refused", "UNPROTECTED")]
    assert hospital.releases() == []  # what did not leave is not counted


def test_a_spent_budget_refuses_before_any_work(hospital: Hospital) -> None:
    hospital.policy(f"{NOISED[:-1]}, epsilon: {epsilon({20.0: 2}, 1e-5)}}}")
    assert hospital.gradient().has_content()
    assert hospital.gradient(round=1, run="another-run").has_content()
    assert hospital.gradient(round=2).error.code == RefusalCode.PRIVACY_BUDGET
    assert hospital.crossings()[-1] == ("in", "refused", "PRIVACY_BUDGET")  # on the way in: no work was done
    assert len(hospital.releases()) == 2
    *_, entry = hospital.ledger().entries()
    assert "updates.epsilon is" in entry.detail
    hospital.policy(NOISED)
    assert hospital.gradient(round=2).has_content()  # the site's people changed their minds


@pytest.mark.parametrize(
    ("before", "after"), [("kinds: [weights]", CLIPPED), (CLIPPED, NOISED), (NOISED, "kinds: [weights]")]
)
def test_an_update_whose_protection_was_changed_during_the_work_stays(tmp_path: Path, before: str, after: str) -> None:
    handover = Handover.of(weights={f"{UPDATE}weight": torch.ones(3)})
    site = guarded.Node(tmp_path, Exchange(HandoverSchema.of(guarded.small_handover()),
                                           Declaration(HandoverSchema.of(handover), {})))  # fmt: skip

    def work(message: Message, context: Any) -> Message:
        (tmp_path / "policy.yaml").write_text(after)
        return Message(pack_reply(guarded.request(), handover, {}), reply_to=message)

    (tmp_path / "policy.yaml").write_text(before)
    assert site.ask(work).error.code == RefusalCode.POLICY
    assert site.verdicts() == [("in", "allowed", ""), ("out", "refused", "POLICY")]
    assert site.ask(work).has_content()


# The noise


def noise(home: Path, handover: Handover = FIRST, **changes: Any) -> SiteNoise:
    return SiteNoise(home, Request(run="run-1", site="north", plan=JOINT).model_copy(update=changes), handover)


def test_the_noise_is_normal(tmp_path: Path) -> None:
    numbers = noise(tmp_path)(b"digest", 200_000)
    assert numbers.dtype == np.float64
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert abs(numbers.mean()) < 5 / 200_000**0.5
    assert np.corrcoef(numbers[1:], numbers[:-1])[0, 1] < 5 / 200_000**0.5
    assert np.array_equal(noise(tmp_path)(b"digest", 10), numbers[:10])
    assert not np.array_equal(noise(tmp_path)(b"other", 10), numbers[:10])
    assert not np.array_equal(noise(tmp_path, stop=1)(b"digest", 10), numbers[:10])
    moved = Handover.of(weights={"weight": torch.ones(3)})
    assert not np.array_equal(noise(tmp_path, moved)(b"digest", 10), numbers[:10])


def test_the_key_is_one_for_all_and_for_its_owner_only(tmp_path: Path) -> None:
    barrier, keys = threading.Barrier(8), []

    def take() -> None:
        barrier.wait()
        keys.append(noise_key(tmp_path))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
    assert noise_key(tmp_path) == keys[0]


def test_a_broken_key_makes_no_noise(hospital: Hospital) -> None:
    hospital.policy(NOISED)
    (hospital.settings.home / KEY_FILE).write_bytes(b"short")
    with pytest.raises(ValueError, match="holds no key; delete it"):
        noise_key(hospital.settings.home)
    assert hospital.gradient().error.code == RefusalCode.EXCEPTION
    assert hospital.releases() == []


def test_a_held_update_is_counted_when_it_leaves_and_once(hospital: Hospital) -> None:
    hospital.policy(f"hold: true\n{NOISED}")
    home = hospital.settings.home
    assert hospital.gradient().error.code == RefusalCode.HELD
    assert hospital.releases() == []
    (held,) = held_handovers(home)
    summary = leakage_summary(home, held.handover)
    assert (summary.epsilon_so_far, summary.epsilon) == (None, pytest.approx(epsilon({20.0: 1}, 1e-5)))
    assert summary.kinds[Kind.WEIGHTS].change is None  # nothing like it came in
    release(home, held.handover, by="Dr. Roe", why="as agreed")
    hospital.policy("hold: true\nupdates: {clip: 2.0, noise: 20, delta: 1.0e-5}")
    assert hospital.gradient().error.code == RefusalCode.POLICY  # it is protected otherwise than is asked by now
    hospital.policy(f"hold: true\n{NOISED}")
    first = hospital.gradient()
    assert first.has_content()
    assert hospital.gradient().content == first.content
    assert [found["releases"] for found in hospital.releases()] == [{"20.0": 1}]
