"""What a node keeps of messages: objects by their digests, replies by their questions, and no code from outside."""

import hashlib
import io
import os
import time
import zipfile
from pathlib import Path

import pytest

from node.bundle import brought, check_bundle
from node.database import open_database
from node.keys import UnusableKey, make_key, read_key
from node.ledger import Crossing, Direction, Ledger, Verdict
from node.objects import Damaged, Objects
from node.replies import MOST, MOST_OPEN, Replies, SimulatedReplies
from protos.messages import SCORE, VISIT
from protos.refusals import Refusal, RefusalCode


def name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    kept = Objects(tmp_path / "objects", budget=100)
    kept.prepare()
    return kept


def test_an_object_is_what_its_name_says(objects: Objects) -> None:
    with pytest.raises(Damaged):
        objects.put(name_of(b"one"), b"other")
    assert not objects.holds(name_of(b"one"))
    objects.put(name_of(b"one"), b"one")
    assert objects.holds(name_of(b"one"))
    assert objects.get(name_of(b"one")) == b"one"


def test_an_object_that_was_changed_on_the_disk_is_fetched_anew(objects: Objects) -> None:
    objects.put(name_of(b"one"), b"one")
    (objects.folder / name_of(b"one")).write_bytes(b"two")
    with pytest.raises(Damaged):
        objects.get(name_of(b"one"))
    assert not objects.holds(name_of(b"one"))


@pytest.mark.parametrize("name", ["", "../node.key", "A" * 64, "0" * 63, "0" * 65, "/etc/passwd", "0" * 64 + "\n"])
def test_a_name_that_is_no_digest_reaches_no_file(objects: Objects, name: str) -> None:
    with pytest.raises(Damaged):
        objects.holds(name)
    with pytest.raises(Damaged):
        objects.get(name)
    with pytest.raises(Damaged):
        objects.put(name, b"")


def test_the_longest_unused_objects_go_first_and_needed_ones_never(objects: Objects) -> None:
    contents = [bytes([number]) * 40 for number in range(4)]
    for number, content in enumerate(contents):
        objects.put(name_of(content), content)
        os.utime(objects.folder / name_of(content), (number, number))
    assert objects.holds(name_of(contents[1]))  # used just now
    objects.trim([name_of(contents[0])])
    assert [objects.holds(name_of(content)) for content in contents] == [True, True, False, False]


def test_what_was_left_half_written_is_cleared(objects: Objects) -> None:
    (objects.folder / ".new-abc").write_bytes(b"half")
    objects.prepare()
    assert list(objects.folder.iterdir()) == []


@pytest.fixture
def replies(tmp_path: Path) -> Replies:
    kept = Replies(tmp_path / "replies", tmp_path)
    kept.prepare()
    return kept


def test_a_reply_is_found_by_its_question_alone(replies: Replies) -> None:
    replies.keep("a" * 64, b"tree", ["x"], "a-run", 0)
    found = replies.find("a" * 64)
    assert found is not None
    assert (bytes.fromhex(found.tree), found.parts) == (b"tree", ["x"])
    assert replies.find("b" * 64) is None
    assert replies.parts() == {"x"}


def test_a_reply_is_not_given_again_under_another_policy(replies: Replies, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("kinds: [weights, generator]")
    replies.keep("a" * 64, b"tree", [], "a-run", 0)
    assert replies.find("a" * 64) is not None
    policy.write_text("kinds: [weights]")
    assert replies.find("a" * 64) is None
    policy.unlink()
    assert replies.find("a" * 64) is None


def test_of_a_run_only_the_newest_replies_are_kept(replies: Replies) -> None:
    for number in range(MOST + 3):
        replies.keep(f"{number:064x}", b"", [], "a-run", number)
        os.utime(replies._folder / f"{number:064x}", (number, number))
    replies.keep("f" * 64, b"", [], "a-run", MOST + 3)
    assert sum(replies.find(f"{number:064x}") is not None for number in range(MOST + 3)) == MOST - 1


def record(home: Path, run: str, message_type: str, stop: int) -> None:
    """Write down that the coordinator asked."""
    asked = Crossing(Direction.IN, "north", message_type, Verdict.ALLOWED, run=run, stop=stop)
    Ledger(open_database(home)).record(asked)


def keep_of(home: Path, simulated: bool, number: int) -> None:
    """Keep the reply of a run of its own, to a question about its stop 3."""
    question, run = f"{number:064x}", f"run-{number}"
    if simulated:
        SimulatedReplies(home, run).keep(question, b"", 3)
    else:
        Replies.of(home).keep(question, b"", [], run, 3)
    os.utime(home / "replies" / (run if simulated else question), (number, number))


def kept_in(home: Path, simulated: bool) -> set[int]:
    names = [path.name for path in (home / "replies").iterdir()]
    return {int(name.removeprefix("run-")) if simulated else int(name, 16) for name in names}


SHOWN = {"scores of it": (SCORE, 3), "a later visit": (VISIT, 4)}
NOT_SHOWN = {"the same visit": (VISIT, 3), "earlier scores": (SCORE, 2), "its cases": ("query.describe", 5)}


@pytest.mark.parametrize("asked", [*SHOWN, *NOT_SHOWN])
@pytest.mark.parametrize("simulated", [False, True])
def test_older_replies_stay_until_the_coordinator_shows_that_it_has_them(
    simulated: bool, asked: str, tmp_path: Path
) -> None:
    (tmp_path / "replies").mkdir()
    for number in range(MOST + 3):
        keep_of(tmp_path, simulated, number)
    assert kept_in(tmp_path, simulated) == set(range(MOST + 3))
    record(tmp_path, "run-1", *(SHOWN | NOT_SHOWN)[asked])
    keep_of(tmp_path, simulated, MOST + 3)
    assert (1 in kept_in(tmp_path, simulated)) == (asked in NOT_SHOWN)
    assert kept_in(tmp_path, simulated) >= {*range(MOST + 4)} - {1}


@pytest.mark.parametrize("simulated", [False, True])
def test_replies_that_nobody_asks_for_again_are_bounded(simulated: bool, tmp_path: Path) -> None:
    (tmp_path / "replies").mkdir()
    for number in range(MOST + MOST_OPEN + 2):
        keep_of(tmp_path, simulated, number)
    assert kept_in(tmp_path, simulated) == set(range(2, MOST + MOST_OPEN + 2))


def test_a_clock_that_was_set_back_does_not_make_the_newest_reply_the_oldest(replies: Replies) -> None:
    tomorrow = time.time() + 24 * 3600
    for number in range(MOST):
        replies.keep(f"{number:064x}", b"", [], "a-run", number)
        os.utime(replies._folder / f"{number:064x}", (tomorrow, tomorrow))
    replies.keep("f" * 64, b"", [], "a-run", MOST + 3)
    assert replies.find("f" * 64) is not None


def test_the_newest_reply_of_a_run_is_kept_while_other_runs_remove_theirs(tmp_path: Path) -> None:
    (tmp_path / "replies").mkdir()
    (tmp_path / "replies" / "gone").symlink_to(tmp_path / "nowhere")  # is listed, and cannot be looked at
    kept = SimulatedReplies(tmp_path, "a-run")
    kept.keep("a" * 64, b"first", 0)
    kept.keep("b" * 64, b"second", 1)
    assert (kept.find("a" * 64), kept.find("b" * 64)) == (None, b"second")
    assert SimulatedReplies(tmp_path, "another-run").find("b" * 64) is None


def bundle(*files: str, content: bytes = b"") -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for file in files:
            archive.writestr(file, content)
    return data.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        bundle("pyproject.toml", "node/app.py"),
        bundle("pyproject.toml", "evil.pth"),
        bundle("pyproject.toml", "../../etc/cron.d/x"),
        bundle("PYPROJECT.TOML"),
        bundle("pyproject.toml", content=os.urandom(2**17)),
        b"PK, or not",
        b"",
    ],
)
def test_code_in_a_bundle_is_refused(content: bytes) -> None:
    with brought(content), pytest.raises(Refusal) as refused:
        check_bundle()
    assert refused.value.code is RefusalCode.CODE


def test_a_description_is_let_in_and_in_process_there_is_none() -> None:
    check_bundle()
    with brought(bundle("pyproject.toml", ".info/CONTENT")):
        check_bundle()


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    public = make_key(tmp_path / "keys" / "node.key")
    private = tmp_path / "keys" / "node.key"
    assert private.stat().st_mode & 0o077 == 0
    before = private.read_bytes(), public.read_bytes()
    public.unlink()
    make_key(private)
    assert (private.read_bytes(), public.read_bytes()) == before
    assert read_key(private).curve.name == "secp384r1"


def test_what_is_no_key_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "node.key").write_text("none")
    with pytest.raises(UnusableKey, match=r"^\S+node\.key: no private key .*\.$"):
        make_key(tmp_path / "node.key")
