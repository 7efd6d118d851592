"""What a person sees of a handover that waits for them, and the commands that decide on it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.decisions import leakage_summary
from node.held import State
from node.leakage import measure
from protos.handover import Handover, Kind, Tensor
from tests.node.commanded import command
from tests.node.guarded import small_handover, tensor
from tests.node.holding import Site, site

__all__ = ["site"]


def test_a_summary_says_what_would_leave(site: Site) -> None:
    site.visit()
    (name,) = site.waiting
    summary = leakage_summary(site.home, name[:8])
    leaving, arrived = small_handover(0.5), small_handover()
    weights = summary.kinds[Kind.WEIGHTS]
    assert (summary.handover, summary.state, summary.whole) == (name, State.WAITING, True)
    assert (summary.run, summary.stop, summary.strategy) == ("run-1", 2, "finetune")
    assert (summary.tensors, summary.bytes, weights.compared) == (3, leaving.nbytes(), 3)
    assert (summary.largest, summary.largest_bytes) == ("weights/conv.weight: float32[8, 4, 3, 3]", 1152)
    flat = [
        np.concatenate([each.torch().double().numpy().ravel() for each in handover.weights.values()])
        for handover in (leaving, arrived)
    ]
    assert weights.norm == pytest.approx(np.linalg.norm(flat[0]))
    assert weights.change == pytest.approx(np.linalg.norm(flat[0] - flat[1]))
    assert (summary.finite, summary.copies, summary.epsilon) == (True, None, None)
    assert summary.metrics == {"cases": 12, "loss": 0.25}
    assert summary.allowed[-1] == "Every handover waits here until a named person releases it."


dtypes = st.sampled_from(["float64", "float32", "float16", "bfloat16", "int64", "uint8", "bool"])


@given(st.data(), dtypes, st.integers(0, 6))
def test_facts_of_any_values_are_numbers(data: st.DataObject, dtype: str, length: int) -> None:
    width = Tensor(dtype, (0,), b"").spec.nbytes or {"float64": 8, "int64": 8, "float32": 4, "uint8": 1, "bool": 1}.get(
        dtype, 2
    )
    one, other = (
        Tensor(dtype, (length,), data.draw(st.binary(min_size=width * length, max_size=width * length)))
        for _ in range(2)
    )
    facts = measure(Handover(generator={"a": one}), Handover(generator={"a": other}))[Kind.GENERATOR]
    assert facts.norm >= 0
    assert facts.change is not None
    assert facts.change >= 0
    assert facts.finite == one.finite()


def test_what_did_not_come_in_is_not_compared() -> None:
    leaving = Handover(prompts={"north": tensor([3.0, 4.0]), "east": tensor([0.0, 0.0])})
    facts = measure(leaving, Handover(prompts={"north": tensor([3.0])}))[Kind.PROMPTS]
    assert (facts.norm, facts.change, facts.compared) == (5.0, None, 0)
    assert measure(leaving, None)[Kind.PROMPTS].change is None


def test_the_commands_list_release_and_withhold(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    home = ("--home", str(site.home))
    assert command("held", *home) == 0  # nothing has reached it
    site.visit()
    site.visit(stop=3)
    first, second = site.waiting
    capsys.readouterr()
    assert command("held", *home, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [summary["handover"] for summary in shown] == [first, second]
    assert command("held", *home) == 0
    said = capsys.readouterr().out
    assert "weights: 3 tensors, 1.2KB" in said
    assert "near-copies" not in said
    assert command("release", first[:8], "--by", "Dr. Roe", "--why", "fine", *home) == 0
    assert command("release", first[:8], "--by", "Dr. Roe", "--why", "fine", *home) == 2
    assert command("release", second[:4], "--by", "Dr. Roe", "--why", "fine", *home) == 2
    assert command("withhold", second, "--by", "Dr. Roe", "--why", "", *home) == 2
    assert command("withhold", second, "--by", "Dr. Roe", "--why", "no", *home) == 0
    assert command("held", *home) == 0
    assert "Nothing waits" in capsys.readouterr().out
    assert command("held", first, *home) == 0
    assert "released by Dr. Roe (fine)" in capsys.readouterr().out
    assert command("held", "--home", str(site.home / "none")) == 2
    site.visit(stop=4)
    site.path(site.waiting[0]).unlink()
    assert command("held", *home) == 1
    assert "It cannot be released" in capsys.readouterr().out
    assert command("ledger", *home) == 0
