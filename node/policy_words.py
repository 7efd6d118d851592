"""A site's policy in plain sentences: what leaves it, and what does not."""

from collections.abc import Iterable

from node.policy import Policy
from protos.handover import Kind

KINDS = {
    Kind.WEIGHTS: "the model's weights",
    Kind.IMPORTANCE: "how much each weight matters",
    Kind.PROMPTS: "prompts that stand for a site",
    Kind.GENERATOR: "a generator that imitates images",
}


def policy_in_words(policy: Policy) -> list[str]:
    """One sentence per rule, the most important ones first; there is always one on what leaves and one on waiting."""
    return [
        "Images, labels and the names of cases never leave.",
        _kinds(policy),
        *_rules(policy),
        _held(policy),
    ]


def _kinds(policy: Policy) -> str:
    if policy.kinds is None:
        return "Whatever a strategy declares may leave: weights, importance, prompts and generators."
    if not policy.kinds:
        return "Nothing that is learnt here may leave."
    return f"Of what is learnt here may leave: {_named(policy.kinds)}; nothing else."


def _rules(policy: Policy) -> Iterable[str]:
    if policy.tensors is not None:
        yield f"Only tensors of these names may leave: {_listed(policy.tensors)}."
    if isinstance(policy.max_bytes, dict):
        for kind in sorted(policy.max_bytes):
            yield f"At most {policy.max_bytes[kind].human_readable(decimal=True)} of {kind} leave at once."
    elif policy.max_bytes is not None:
        yield f"At most {policy.max_bytes.human_readable(decimal=True)} leave at once."
    if policy.strategies is not None:
        yield f"Only these strategies may work here: {_listed(sorted(policy.strategies))}."
    if policy.metrics is not None:
        yield f"Of single numbers only these may leave: {_listed(policy.metrics)}."
    if policy.updates is not None:
        updates = policy.updates
        noise = f" and noised by {updates.noise:g} times that" if updates.noise else ", without noise"
        yield f"Gradients leave clipped to {updates.clip:g}{noise}."
        if updates.epsilon is not None:
            yield f"No more of them leave when epsilon would pass {updates.epsilon:g} (delta {updates.delta:g})."
        if updates.only:
            yield "Nothing else that is learnt leaves."
    if policy.memory is not None:
        most = policy.memory.cases
        yield f"A run may keep at most {most} cases here for rehearsal." if most else "No case is kept for rehearsal."
    if policy.copies is not None:
        yield (
            f"A generator stays if more than {policy.copies.most:.1%} of its images are near-copies of training images."
        )


def _held(policy: Policy) -> str:
    if policy.hold is True:
        return "Every handover waits here until a named person releases it."
    if policy.hold:
        return f"A handover waits here until a named person releases it if it holds {_named(policy.hold, 'or')}."
    return "What is allowed leaves without a person's decision."


def _named(kinds: Iterable[Kind], word: str = "and") -> str:
    names = [KINDS[kind] for kind in Kind if kind in set(kinds)]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
