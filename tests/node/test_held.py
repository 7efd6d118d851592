"""What a policy holds leaves when a named person has released it: exactly what was shown, once, whatever dies."""

import json
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from node.audit import Unsigned
from node.decisions import Undecidable, leakage_summary, release, withhold
from node.held import HeldHandovers, name_of
from node.policy_file import FILE
from protos.messages import SCORE, pack_request, read_handover
from protos.refusals import RefusalCode
from tests.node.guarded import all_that_crosses, request, small_handover
from tests.node.holding import Site, site

__all__ = ["site"]

ROOT = Path(__file__).parents[2]
SIGNED = {"by": "Dr. Roe", "why": "looked at it"}


def test_nothing_of_it_crosses_before_it_is_released(site: Site) -> None:
    reply = site.visit()
    assert (reply.error.code, reply.has_content()) == (RefusalCode.HELD, False)
    crossed = all_that_crosses(reply)
    for _, _, each in small_handover(site.scale).items():
        assert each.data[:16] not in crossed
    assert site.visit().error.code == RefusalCode.HELD
    assert site.visits == 1
    assert site.verdicts() == [("in", "allowed", ""), ("out", "held", "HELD")]
    held = site.crossings()[1]
    assert (held.kind_bytes, held.metrics, held.privacy) == ("{}", "{}", None)
    assert held.manifest is not None


def test_however_often_it_is_asked_for_a_wait_is_one_entry(site: Site) -> None:
    for _ in range(5):
        assert site.visit().error.code == RefusalCode.HELD
    assert site.verdicts() == [("in", "allowed", ""), ("out", "held", "HELD")]
    (site.home / FILE).write_text("hold: [weights]\n")
    for _ in range(2):
        assert site.visit().error.code == RefusalCode.HELD
    assert [entry.verdict for entry in site.ledger().entries()] == ["changed", "allowed", "held", "changed"]
    (site.home / FILE).write_text("kinds: []\n")
    for _ in range(2):  # a refusal is no wait
        assert site.visit().error.code == RefusalCode.POLICY
    assert site.verdicts()[2:] == [("in", "refused", "POLICY")] * 2
    assert site.visits == 1


def test_after_a_release_it_leaves_as_it_would_have_without_a_hold(site: Site, tmp_path: Path) -> None:
    site.visit()
    (name,) = site.waiting
    release(site.home, name, **SIGNED)
    site.scale = 9.0  # what another visit would come to
    reply = site.visit()
    free = Site(tmp_path / "free")
    assert reply.content == free.visit().content
    assert site.visits == 1
    *_, decision, _, left = site.ledger().entries()
    assert (decision.direction, decision.verdict, decision.manifest) == ("here", "released", None)
    assert (left.direction, left.verdict, left.code) == ("out", "allowed", "")
    assert json.loads(left.audit) == json.loads(decision.audit) == {**SIGNED, "handover": name}
    assert left.manifest == free.crossings()[-1].manifest
    assert site.ledger().verify() == []


def test_who_lost_the_reply_gets_the_same_bytes_again_under_the_same_release(site: Site) -> None:
    site.visit()
    release(site.home, site.waiting[0], **SIGNED)
    first = site.visit()
    site.scale = 9.0
    assert site.visit().content == first.content
    assert site.visits == 1
    assert site.waiting == []


def test_what_is_withheld_stays_for_good(site: Site) -> None:
    site.visit()
    (name,) = site.waiting
    withhold(site.home, name, by="J. Doe", why="too few cases")
    assert not site.path(name).exists()
    for _ in range(2):
        assert site.visit().error.code == RefusalCode.WITHHELD
    assert site.visits == 1
    assert site.crossings()[-1].detail == "J. Doe withheld it: too few cases"
    with pytest.raises(Undecidable, match=r"^J\. Doe withheld .*\(too few cases\); that is final\.$"):
        release(site.home, name, **SIGNED)


@pytest.mark.parametrize("again", [release, withhold])
def test_it_is_decided_once(site: Site, again: Any) -> None:
    site.visit()
    (name,) = site.waiting
    release(site.home, name, **SIGNED)
    with pytest.raises(Undecidable, match=r"^Dr\. Roe released .* already"):
        again(site.home, name, by="J. Doe", why="me too")
    assert [entry.verdict for entry in site.ledger().entries() if entry.direction == "here"] == ["changed", "released"]


def test_of_many_who_decide_at_once_one_does(site: Site) -> None:
    site.visit()
    (name,) = site.waiting

    def decide(number: int) -> bool:
        try:
            (release, withhold)[number % 2](site.home, name, by=f"Person {number}", why="now")
        except Undecidable:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(decide, range(8))) == 1
    decided = [entry for entry in site.ledger().entries() if entry.verdict in ("released", "withheld")]
    assert len(decided) == 1
    assert site.visit().has_content() == (decided[0].verdict == "released")


# Other bytes than were shown


def other_handover(site: Site, name: str) -> None:
    """A whole handover of the same schema, with other values."""
    site.path(name).write_bytes(small_handover(7.0).to_bytes())


def cut(site: Site, name: str) -> None:
    site.path(name).write_bytes(site.path(name).read_bytes()[:-1])


def gone(site: Site, name: str) -> None:
    site.path(name).unlink()


def other_metrics(site: Site, name: str) -> None:
    with site.ledger().writing() as connection:
        connection.exec_driver_sql("""UPDATE held SET metrics = '{"loss": 99.0, "cases": 12}'""")


@pytest.mark.parametrize("spoil", [other_handover, cut, gone, other_metrics])
def test_what_is_not_as_it_was_shown_is_not_released(site: Site, spoil: Any) -> None:
    site.visit()
    (name,) = site.waiting
    spoil(site, name)
    assert not leakage_summary(site.home, name).whole
    with pytest.raises(Undecidable, match="It is not released"):
        release(site.home, name, **SIGNED)
    assert site.visit().error.code == RefusalCode.HELD  # made again, and held
    assert site.visits == 2
    release(site.home, site.waiting[0], **SIGNED)
    assert read_handover(site.visit().content) == small_handover(0.5)


@pytest.mark.parametrize("spoil", [other_handover, cut, gone, other_metrics])
@pytest.mark.parametrize("scale", [0.5, 0.6])
def test_what_is_spoilt_after_the_release_does_not_leave(site: Site, spoil: Any, scale: float) -> None:
    site.visit()
    (name,) = site.waiting
    release(site.home, name, **SIGNED)
    spoil(site, name)
    site.scale = scale
    reply = site.visit()  # made again: the same bits are released already, others are not
    if scale == 0.5:
        assert read_handover(reply.content) == small_handover(0.5)
    else:
        assert reply.error.code == RefusalCode.HELD
        assert site.waiting not in ([], [name])


def test_the_policy_of_the_day_has_the_last_word(site: Site) -> None:
    site.visit()
    (name,) = site.waiting
    release(site.home, name, **SIGNED)
    for text in ("hold: true\nkinds: []\n", "metrics: [cases]\n", "max_bytes: 1\n", "kinds: [\n"):
        (site.home / FILE).write_text(text)
        assert site.visit().error.code in (RefusalCode.POLICY, RefusalCode.POLICY_UNREADABLE)
    (site.home / FILE).write_text("hold: true\n")
    assert site.visit().has_content()
    assert site.visits == 1


def test_what_waits_waits_on_when_the_policy_holds_no_more(site: Site) -> None:
    site.visit()
    (site.home / FILE).unlink()
    assert site.visit().error.code == RefusalCode.HELD
    assert site.visit(stop=3).has_content()


@pytest.mark.parametrize(
    ("policy", "waits"),
    [("hold: false", False), ("hold: []", False), ("hold: [generator, prompts]", False), ("hold: [weights]", True)],
)
def test_a_policy_may_hold_some_kinds_alone(site: Site, policy: str, waits: bool) -> None:
    (site.home / FILE).write_text(policy)
    assert site.visit().has_error() == waits


def test_scores_and_refusals_do_not_wait(site: Site) -> None:
    assert site.ask(site.work, message_type=SCORE).has_content()
    assert site.ask(lambda message, context: Message(RecordDict(), reply_to=message)).error.code == RefusalCode.REPLY
    assert site.waiting == []


def test_every_question_has_an_answer_of_its_own(site: Site) -> None:
    site.visit()
    release(site.home, site.waiting[0], **SIGNED)
    for changes in ({"round": 1}, {"run": "run-2"}, {"stop": 3}, {"first": True}):
        assert site.visit(**changes).error.code == RefusalCode.HELD
    other = pack_request(request(), small_handover(2.0))
    assert site.ask(site.work, other).error.code == RefusalCode.HELD
    assert len(site.waiting) == 5


def test_what_the_run_went_on_without_is_over(site: Site) -> None:
    site.visit()
    site.visit(stop=3)
    (name, later) = site.waiting
    HeldHandovers(site.home, site.ledger()).settle("run-1", 2)
    assert site.waiting == [later]
    assert not site.path(name).exists()
    with pytest.raises(Undecidable, match="went on without"):
        release(site.home, name, **SIGNED)


def test_files_of_what_left_are_kept_for_a_while_only(site: Site) -> None:
    for stop in range(11):
        site.visit(stop=stop)
        release(site.home, site.waiting[0], **SIGNED)
        assert site.visit(stop=stop).has_content()
    assert len(list((site.home / "held").iterdir())) == 8 + 1  # tidied when the next one is held
    assert read_handover(site.visit(stop=0).content) == small_handover(0.5)  # made again, and released already


def test_a_disk_that_is_full_lets_nothing_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("node.held.replace_file", full)
        assert site.visit().error.code == RefusalCode.LEDGER
    assert site.waiting == []
    assert site.visit().error.code == RefusalCode.HELD


@pytest.mark.parametrize("by", ["", " ", "x" * 81, "Roe\nallowed", "Roe\x1b[2J", "R\u202eeo", "Roe\ud800"])
def test_nobody_is_no_person(site: Site, by: str) -> None:
    site.visit()
    (name,) = site.waiting
    for decide in (release, withhold):
        with pytest.raises(Unsigned):
            decide(site.home, name, by=by, why="because")
        with pytest.raises(Unsigned):
            decide(site.home, name, by="Dr. Roe", why=by * 7)
    assert site.waiting == [name]


@pytest.mark.parametrize("name", ["", "%", "_" * 8, "../../policy", "0" * 64, "'; DROP TABLE held; --", "*"])
def test_a_name_that_is_none_decides_nothing(site: Site, name: str) -> None:
    site.visit()
    for look in (leakage_summary, lambda home, name: release(home, name, **SIGNED)):
        with pytest.raises(Undecidable):
            look(site.home, name)
    assert len(site.waiting) == 1


# When things die


DYING = """
import os, signal, sys
from pathlib import Path
from node import guard, held, ledger
from node.decisions import held_handovers, release
from node.policy_file import FILE
from tests.node.test_held import Site, SIGNED

home, moment = Path(sys.argv[1]), sys.argv[2]
die = lambda *args, **named: os.kill(os.getpid(), signal.SIGKILL)
site = Site(home)
(home / FILE).write_text("hold: true\\n")
if moment == "before the row":
    held.sync_folder = die
if moment == "before the answer":
    held.HeldHandovers._tidy = die
site.visit()
if moment == "in the decision":
    ledger.Ledger.record.__globals__["_link"] = die
release(home, held_handovers(home)[0].handover, **SIGNED)
if moment == "before the departure":
    held.HeldHandovers.leaves = die
if moment == "after the departure":
    record = guard._Passage._record
    guard._Passage._record = lambda self, entry, *also: (record(self, entry, *also), entry.direction == "out" and die())
site.visit()
"""


@pytest.mark.parametrize(
    ("moment", "decided", "left"),
    [
        ("before the row", False, False),
        ("before the answer", False, False),
        ("in the decision", False, False),
        ("before the departure", True, False),
        ("after the departure", True, True),
    ],
)
def test_killed_at_any_moment_it_waits_or_leaves_as_it_was_shown(
    tmp_path: Path, moment: str, decided: bool, left: bool
) -> None:
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path), moment], cwd=ROOT, timeout=300)
    assert done.returncode == -signal.SIGKILL
    site = Site(tmp_path)
    departures = [entry for entry in site.crossings() if (entry.direction, entry.verdict) == ("out", "allowed")]
    assert len(departures) == left
    if not decided:
        assert site.visit().error.code == RefusalCode.HELD
        assert len(site.waiting) == 1
        release(site.home, site.waiting[0], **SIGNED)
    visits = site.visits
    assert read_handover(site.visit().content) == small_handover(0.5)
    assert site.visits == visits
    assert sum(entry.verdict == "released" for entry in site.ledger().entries()) == 1
    assert site.ledger().verify() == []


steps = st.lists(
    st.sampled_from(
        ["visit", "other visit", "release", "withhold", "swap", "lose", "narrow", "free", "hold", "settle"]
    ),
    max_size=14,
)


@settings(max_examples=40)
@given(steps)
def test_whatever_happens_nothing_leaves_that_was_not_released(done: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        (site.home / FILE).write_text("hold: true\n")
        released: set[str] = set()
        free = False
        for step in done:
            site.scale = 0.6 if step == "other visit" else 0.5
            waiting = site.waiting
            match step:
                case "visit" | "other visit":
                    reply = site.visit()
                    if reply.has_content() and not free:
                        manifest = bytes(reply.content.config_records["manifest"]["manifest"])
                        question = HeldHandovers(site.home, site.ledger()).all()[-1].question
                        assert name_of(question, manifest, dict(reply.content.metric_records["metrics"])) in released
                case "release" if waiting:
                    try:
                        released.add(release(site.home, waiting[0], **SIGNED).handover)
                    except Undecidable:
                        assert not leakage_summary(site.home, waiting[0]).whole
                case "withhold" if waiting:
                    withhold(site.home, waiting[0], **SIGNED)
                case "swap" | "lose":
                    for path in (site.home / "held").glob("*"):
                        path.write_bytes(small_handover(7.0).to_bytes()) if step == "swap" else path.unlink()
                case "narrow" | "free" | "hold":
                    texts = {"narrow": "hold: true\nkinds: []\n", "free": "hold: false\n", "hold": "hold: true\n"}
                    (site.home / FILE).write_text(texts[step])
                    free = step == "free"
                case "settle":
                    HeldHandovers(site.home, site.ledger()).settle("run-1", 2)
        assert site.ledger().verify() == []
