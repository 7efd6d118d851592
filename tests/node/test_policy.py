"""A site's policy can only narrow, and a policy that is not understood lets nothing through."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.guard import Exchange
from node.policy import Policy
from protos.declaration import Bound, Declaration
from protos.handover import HandoverSchema, Kind, TensorSpec
from protos.messages import pack_reply
from protos.refusals import Refusal, RefusalCode
from tests.node.guarded import METRICS, Node, honest, request, small_handover

NAMES = ["finetune", "joint", "l2"]
METRIC_NAMES = ["loss", "dsc.1", "dsc.2", "cases"]

schemas = st.builds(
    HandoverSchema,
    st.dictionaries(
        st.sampled_from(Kind),
        st.dictionaries(
            st.sampled_from("abc"), st.builds(TensorSpec, st.just("float32"), st.tuples(st.integers(0, 99))), min_size=1
        ),
    ),
)
declarations = st.builds(
    Declaration,
    st.none() | schemas,
    st.dictionaries(st.sampled_from(METRIC_NAMES), st.builds(Bound, st.just(0.0), st.floats(0, 9))),
)
restrictions = st.fixed_dictionaries(
    {},
    optional={
        "kinds": st.lists(st.sampled_from(list(Kind)).map(str)),
        "strategies": st.lists(st.sampled_from(NAMES)),
        "max_bytes": st.integers(0, 999) | st.dictionaries(st.sampled_from(list(Kind)).map(str), st.integers(0, 999)),
        "metrics": st.lists(st.sampled_from([*METRIC_NAMES, "dsc.*", "*"])),
    },
)


def narrowed(policy: dict, strategy: str, declared: Declaration) -> Declaration | None:
    try:
        return Policy.model_validate(policy).narrow(strategy, declared)
    except Refusal:
        return None


@given(restrictions, st.sampled_from(NAMES), declarations)
def test_a_policy_only_narrows(policy, strategy, declared) -> None:
    allowed = narrowed(policy, strategy, declared)
    if allowed is None:
        return
    assert allowed == declared  # all of it or nothing: a reply may hold all of it
    if "metrics" in policy:
        assert all(any(fnmatchcase(name, pattern) for pattern in policy["metrics"]) for name in declared.metrics)
    assert strategy in policy.get("strategies", [strategy])
    if declared.handover is not None:
        assert declared.handover.kinds <= set(policy.get("kinds", Kind))
        limits = policy.get("max_bytes", {})
        for kind, limit in limits.items() if isinstance(limits, dict) else [(None, limits)]:
            assert declared.handover.nbytes(kind) <= limit


@given(restrictions, st.sampled_from(NAMES), declarations)
def test_every_further_key_narrows_further(policy, strategy, declared) -> None:
    allowed = narrowed(policy, strategy, declared)
    for key in policy:
        wider = narrowed({k: v for k, v in policy.items() if k != key}, strategy, declared)
        if allowed is not None:
            assert wider == allowed


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("strategies: [joint]", RefusalCode.POLICY),
        ("kinds: [importance]", RefusalCode.POLICY),
        ("kinds: []", RefusalCode.POLICY),
        ("max_bytes: 1kB", RefusalCode.POLICY),
        ("max_bytes: {weights: 1kB}", RefusalCode.POLICY),
        ("metrics: [cases]", RefusalCode.POLICY),
        ("kinds: [weights]\nstrategies: [finetune]\nmax_bytes: 5MB\nmetrics: ['*s*']", None),
        ("max_bytes: {weights: 1208, prompts: 0}", None),
    ],
)
def test_a_reply_that_a_policy_lets_out_is_let_out_without_it(tmp_path: Path, text, code) -> None:
    node = Node(tmp_path)
    (tmp_path / "policy.yaml").write_text(text)
    reply = node.ask()
    assert reply.error.code == code if code else reply.has_content()
    (tmp_path / "policy.yaml").unlink()
    assert node.ask().has_content()


def test_a_policy_does_not_let_out_what_was_not_declared(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("kinds: [weights, prompts]\nmetrics: ['*']\nmax_bytes: 1GB")
    node = Node(tmp_path, Exchange(HandoverSchema.of(small_handover()), Declaration(None, {"cases": METRICS["cases"]})))
    assert node.ask(honest).error.code == RefusalCode.REPLY
    assert node.ask(_scores).error.code == RefusalCode.METRICS


def _scores(message, context):
    return type(message)(pack_reply(request(), None, {"loss": 0.1}), reply_to=message)


@pytest.mark.parametrize("text", ["kinds: []", "strategies: []", "max_bytes: 1", "metrics: [cases]"])
def test_the_site_is_spared_work_whose_result_could_not_leave(tmp_path: Path, text) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    node, ran = Node(tmp_path), []
    node.ask(lambda message, context: ran.append(1))
    assert not ran
    assert node.verdicts() == [("in", "refused", "POLICY")]


def test_the_ledger_names_the_metrics_that_a_policy_keeps_back(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("metrics: ['c*']")
    node = Node(tmp_path)
    node.ask()
    assert [entry.detail for entry in node.crossings()] == ["The policy's metrics do not include loss."]


@pytest.mark.parametrize("text", ["kinds: []", "metrics: [cases]"])
def test_a_policy_that_was_narrowed_during_the_work_holds(tmp_path: Path, text) -> None:
    def work(message, context):
        (tmp_path / "policy.yaml").write_text(text)
        return honest(message, context)

    node = Node(tmp_path)
    assert node.ask(work).error.code == RefusalCode.POLICY
    assert node.verdicts() == [("in", "allowed", ""), ("out", "refused", "POLICY")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no keys"),
        ("# nothing", "no keys"),
        ("[weights]", "no keys"),
        ("kinds:", "nothing after 'kinds'"),
        ("kinds: weights", "kinds"),
        ("kinds: [wieghts]", "kinds"),
        ("kind: [weights]", "kind"),
        ("max_bytes: lots", "max_bytes"),
        ("max_bytes: {weight: 5MB}", "max_bytes"),
        ("metrics: loss", "metrics"),
        ("memory: 20", "memory"),
        ("memory: {}", "memory.cases"),
        ("memory: {cases: -1}", "memory.cases"),
        ("memory: {case: 1}", "memory.case"),
        ("updates: {only: true}", "updates.clip"),
        ("updates: {clip: 1, only: perhaps}", "updates.only"),
        ("kinds: []\nkinds: [weights]", "twice"),
        ("max_bytes: {weights: 1, weights: 5MB}", "twice"),
        ("kinds: [", "no YAML"),
        ("? [a]\n: b", "no YAML"),
        ("kinds: !!python/object/apply:os.getcwd []", "no YAML"),
    ],
)
def test_a_policy_that_is_not_understood_refuses_everything(tmp_path: Path, text, says) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    node = Node(tmp_path)
    assert node.ask().error.code == RefusalCode.POLICY_UNREADABLE
    (entry,) = node.crossings()
    assert (entry.verdict, entry.code) == ("refused", "POLICY_UNREADABLE")
    assert says in entry.detail
    assert str(tmp_path / "policy.yaml") in entry.detail


@pytest.mark.parametrize("spoil", [Path.mkdir, lambda p: p.write_bytes(b"\xff"), lambda p: p.symlink_to("nowhere")])
def test_a_policy_that_cannot_be_read_refuses_everything(tmp_path: Path, spoil) -> None:
    spoil(tmp_path / "policy.yaml")
    assert Node(tmp_path).ask().error.code == RefusalCode.POLICY_UNREADABLE
