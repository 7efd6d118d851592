"""A policy is changed in somebody's name, by key, whole or not at all; the ledger says what was before and after."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from node.audit import Unsigned
from node.database import open_database
from node.ledger import Ledger
from node.policy import Policy
from node.policy_change import PolicyFault, PolicyMoved, change_policy
from node.policy_file import FILE, PolicyFile
from node.policy_text import edited
from node.policy_words import policy_in_words
from protos import strict_yaml
from tests.node.commanded import command
from tests.node.guarded import Node

ROOT = Path(__file__).parents[2]

OURS = """\
# the rules of our house
kinds: [weights]  # nothing else
max_bytes:
  weights: 5MB  # per visit
  # importance is not wanted

# until May
copies: {most: 0.05}
"""


def changes_of(home: Path) -> list[dict[str, Any]]:
    ledger = Ledger(open_database(home))
    assert ledger.verify() == []
    return [json.loads(entry.audit) for entry in ledger.entries() if entry.message_type == "policy"]


def test_what_is_not_changed_stays_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(OURS)
    (tmp_path / FILE).chmod(0o640)
    change_policy(tmp_path, {"max_bytes": {"weights": "1MB"}, "copies": None, "hold": True}, by="Dr. Roe")
    assert (tmp_path / FILE).read_text() == (
        "# the rules of our house\nkinds: [weights]  # nothing else\nmax_bytes: {weights: 1MB}  # per visit\n"
        "  # importance is not wanted\n\n# until May\nhold: true\n"
    )
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o640
    assert Policy.of(tmp_path).hold is True


values = st.booleans() | st.integers(0, 9) | st.text("ab:#{}[]'\"\n é", max_size=5) | st.lists(st.sampled_from("abc"))
keys = st.sampled_from(["kinds", "hold", "memory", "a b", "# c"])
flat = st.dictionaries(keys, values | st.dictionaries(keys, values, min_size=1))


@given(flat, st.dictionaries(keys, st.none() | values), st.sampled_from([True, False, None]), st.booleans())
def test_edited_text_says_exactly_what_was_wanted(there, changes, style, commented) -> None:
    text = yaml.safe_dump(there, default_flow_style=style) if there else "{}\n"
    text = f"# above\n{text}# below\n" if commented else text
    done = edited(text, changes)
    assert strict_yaml.load(done) == {k: v for k, v in {**there, **changes}.items() if v is not None}


def test_an_entry_says_who_what_before_and_what_after(tmp_path: Path) -> None:
    change_policy(tmp_path, {"hold": True}, by=" Dr. Roe ", why="the board wants to see it")
    seen = PolicyFile.of(tmp_path).digest
    change_policy(tmp_path, {"hold": ["generator"]}, by="J. Doe", seen=seen)
    first, second = changes_of(tmp_path)
    assert (first["by"], first["why"], first["before"], first["after"]) == (
        "Dr. Roe",
        "the board wants to see it",
        None,
        "hold: true\n",
    )
    assert (second["by"], second["before"], second["after"]) == ("J. Doe", "hold: true\n", "hold: [generator]\n")
    assert first["after_sha256"] == second["before_sha256"] == seen


def test_a_change_by_hand_is_noted_when_it_is_next_read(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.ask()
    (tmp_path / FILE).write_text("strategies: [joint]\n")
    node.ask()
    (tmp_path / FILE).write_text("kinds: [\n")
    node.ask()
    node.ask()
    (tmp_path / FILE).unlink()
    node.ask()
    noted = changes_of(tmp_path)
    assert [(change["by"], change["after"]) for change in noted] == [
        ("", "strategies: [joint]\n"),
        ("", "kinds: [\n"),
        ("", None),
    ]
    assert [entry.direction for entry in node.ledger().entries()] == [
        "in", "out", "here", "in", "here", "in", "in", "here", "in", "out"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"holds": True},
        {"hold": "perhaps"},
        {"kinds": ["images"]},
        {"copies": {"most": 2}},
        {"updates": {"clip": 1, "noise": 5}},
        {"kinds": [{"a": 1}]},
    ],
)
def test_what_no_policy_says_changes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / FILE).write_text(OURS)
    with pytest.raises(PolicyFault, match=r"^Changed so, the policy is not understood"):
        change_policy(tmp_path, changes, by="Dr. Roe")
    assert (tmp_path / FILE).read_text() == OURS
    assert [change["by"] for change in changes_of(tmp_path)] == [""]


def test_a_policy_that_is_not_understood_can_be_mended_by_its_key(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("kinds: [weights]\ncopies: {most: 7}\n")
    change_policy(tmp_path, {"copies": {"most": 0.1}}, by="Dr. Roe")
    assert Policy.of(tmp_path).copies is not None


@pytest.mark.parametrize("text", ["kinds: [", "- a\n", "kinds: []\nkinds: []\n"])
def test_what_is_no_mapping_is_mended_by_hand(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(PolicyFault, match="mend it by hand"):
        change_policy(tmp_path, {"hold": True}, by="Dr. Roe")
    assert (tmp_path / FILE).read_text() == text


def test_a_file_that_is_not_the_one_that_was_seen_stays(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("hold: true\n")
    seen = PolicyFile.of(tmp_path).digest
    (tmp_path / FILE).write_text("hold: true\nkinds: []\n")
    for stale in (seen, ""):
        with pytest.raises(PolicyMoved):
            change_policy(tmp_path, {"hold": False}, by="Dr. Roe", seen=stale)
    assert (tmp_path / FILE).read_text() == "hold: true\nkinds: []\n"


@pytest.mark.parametrize(
    ("by", "why"),
    [
        ("", "x"),
        ("  ", "x"),
        ("a" * 81, ""),
        ("Roe\n2 out allowed", ""),
        ("Roe\x1b[2J", ""),
        ("R\u202eeo", ""),
        ("Roe\ud800", ""),
        ("Roe", "w" * 501),
        ("Roe", "a\nb"),
        ("Roe\x00", ""),
    ],
)
def test_who_is_nobody_or_writes_what_steers_a_terminal_changes_nothing(tmp_path: Path, by: str, why: str) -> None:
    with pytest.raises(Unsigned):
        change_policy(tmp_path, {"hold": True}, by=by, why=why)
    assert not (tmp_path / FILE).exists()


def test_a_link_stays_a_link_and_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "ours.yaml"
    home.mkdir()
    elsewhere.write_text("hold: true\n")
    (home / FILE).symlink_to(elsewhere)
    change_policy(home, {"kinds": ["weights"]}, by="Dr. Roe")
    assert (home / FILE).is_symlink()
    assert elsewhere.read_text() == "hold: true\nkinds: [weights]\n"


def test_of_two_changes_at_once_neither_is_lost_in_silence(tmp_path: Path) -> None:
    def change(number: int) -> bool:
        try:
            change_policy(tmp_path, {"memory": {"cases": number}}, by=f"Person {number}")
        except PolicyMoved:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        done = sum(pool.map(change, range(12)))
    changes = changes_of(tmp_path)
    assert len(changes) == done > 0
    for earlier, later in pairwise(changes):
        assert earlier["after_sha256"] == later["before_sha256"]
    assert changes[-1]["after"] == (tmp_path / FILE).read_text()


def test_killed_between_file_and_entry_the_change_is_still_noted(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("kinds: [weights]\n")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom node import policy_change\n"
        "policy_change.sync_folder = lambda folder: os.kill(os.getpid(), signal.SIGKILL)\n"
        "policy_change.change_policy(Path(sys.argv[1]), {'hold': True}, by='Dr. Roe')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL
    Node(tmp_path).ask()
    before, after = changes_of(tmp_path)
    assert (before["after"], after["before"], after["after"]) == (
        "kinds: [weights]\n",
        "kinds: [weights]\n",
        "kinds: [weights]\nhold: true\n",
    )
    assert after["by"] == ""


# In words


restrictions = st.fixed_dictionaries(
    {},
    optional={
        "kinds": st.lists(st.sampled_from(["weights", "importance", "prompts", "generator"])),
        "tensors": st.lists(st.sampled_from(["weights/*", "prompts/north"])),
        "strategies": st.lists(st.sampled_from(["joint", "smg"])),
        "max_bytes": st.integers(0, 999) | st.dictionaries(st.sampled_from(["weights", "prompts"]), st.integers(0, 9)),
        "metrics": st.lists(st.sampled_from(["loss*", "cases"])),
        "updates": st.sampled_from([{"clip": 1}, {"clip": 1, "noise": 2, "delta": 1e-5, "epsilon": 8, "only": False}]),
        "memory": st.fixed_dictionaries({"cases": st.integers(0, 3)}),
        "copies": st.fixed_dictionaries({"most": st.floats(0, 1)}),
        "hold": st.booleans() | st.lists(st.sampled_from(["weights", "generator"])),
    },
)


@given(restrictions)
def test_every_rule_is_a_sentence_of_its_own(keys: dict[str, Any]) -> None:
    words = policy_in_words(Policy.model_validate(keys))
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in words)
    assert len(set(words)) == len(words)
    for key, value in keys.items():
        without = policy_in_words(Policy.model_validate({k: v for k, v in keys.items() if k != key}))
        silent = value in (False, []) if key == "hold" else value == {}
        assert (words == without) == silent


def test_the_command_shows_sets_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ("--home", str(tmp_path))
    assert command("policy", *home) == 0
    assert "nothing is narrowed" in capsys.readouterr().out
    assert command("policy", "set", "max_bytes.weights=5MB", "hold=[generator]", "--by", "Dr. Roe", *home) == 0
    assert command("policy", "set", "max_bytes.prompts=1kB", "hold=", "--by", "Dr. Roe", *home) == 0
    assert (tmp_path / FILE).read_text() == "max_bytes: {weights: 5MB, prompts: 1kB}\n"
    capsys.readouterr()
    assert command("policy", "show", "--json", *home) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sha256"] == PolicyFile.of(tmp_path).digest
    assert shown["policy"] == {"max_bytes": {"weights": 5000000, "prompts": 1000}}
    for wrong in (["set", "hold=true"], ["set", "--by", "X"], ["show", "hold=true"], ["set", "hold", "--by", "X"]):
        assert command("policy", *wrong, *home) == 2
    assert command("policy", "set", "hold=true", "--by", "X", "--seen", "0" * 64, *home) == 2
    assert command("policy", "--home", str(tmp_path / "none")) == 2
    (tmp_path / FILE).write_text("kinds: images\n")
    assert command("policy", *home) == 1
    assert "Nothing crosses" in capsys.readouterr().err
    assert command("ledger", *home) == 0
    assert "Dr. Roe changed the policy (max_bytes: {weights: 5MB}, hold: [generator])." in capsys.readouterr().out


def test_tensors_narrow_by_name(tmp_path: Path) -> None:
    node = Node(tmp_path)
    (tmp_path / FILE).write_text("tensors: [weights/conv.*]\n")
    assert node.ask().has_error()
    assert node.crossings()[-1].detail == "The policy's tensors do not include weights/mask."
    (tmp_path / FILE).write_text("tensors: ['*', '!weights/mask']\n")
    assert node.ask().has_error()
    assert node.crossings()[-1].detail == "The policy's tensors do not include weights/mask."
    for text in ("[weights/conv.*, weights/mask]", "['*', '!prompts/masks']"):
        (tmp_path / FILE).write_text(f"tensors: {text}\n")
        assert node.ask().has_content()


def test_the_policy_is_read_without_pytorch() -> None:
    code = "import sys, node.policy_view, node.policy_change\nassert not {'torch', 'flwr', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120, env=os.environ)
