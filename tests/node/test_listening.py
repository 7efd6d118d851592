"""Waiting for a call that may take long, and for other things meanwhile."""

from queue import SimpleQueue
from threading import Event

from node.listening import Listening


def test_a_call_that_takes_long_is_waited_for_in_parts() -> None:
    answers: SimpleQueue[str] = SimpleQueue()
    listening = Listening(answers.get)
    assert listening.heard(0.01) == (False, None)
    assert listening.heard(0.01) == (False, None)
    answers.put("one")
    answers.put("two")
    assert listening.heard(60) == (True, "one")
    assert listening.heard(60) == (True, "two")


def test_no_call_is_made_that_is_not_wanted() -> None:
    calls: list[int] = []
    done = Event()

    def call() -> int:
        calls.append(len(calls))
        done.set()
        return len(calls)

    listening = Listening(call)
    assert not calls
    assert listening.heard(60) == (True, 1)
    listening.end()
    assert calls == [0]
