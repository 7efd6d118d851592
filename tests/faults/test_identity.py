"""Nodes that come back as somebody else, and replies that arrive twice."""

import threading

import pytest

from node import serving
from node.service_config import ServiceConfig
from node.workers import Answer
from tests.conftest import Desk
from tests.coordinator.serving import wait_for
from tests.faults.deployment import AWAY, Deployment

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


def test_a_node_that_forgot_its_number(deployment: Deployment, slow: Desk) -> None:
    """It cannot sign off the one that it was, which is listed as online for up to a minute; after that it is let in."""
    run = deployment.under_way_at_east()
    said = deployment.node_said("east").count("another process uses it")
    deployment.kill_node("east")
    (deployment.folder / "east" / "node-id").unlink()
    deployment.start_node_again("east")
    assert AWAY.format("east") in deployment.ends(run)
    assert deployment.node_said("east").count("another process uses it") == said + 1
    deployment.assert_nothing_lost(run, slow)


def test_a_site_whose_node_gets_a_new_key_and_number(deployment: Deployment, slow: Desk) -> None:
    run = deployment.under_way_at_east()
    home = deployment.folder / "east"
    former = (home / "node-id").read_text()
    deployment.kill_node("east")
    assert deployment.ask("node", "remove", "east").status == 0
    for name in ("node.key", "node.key.pub", "node-id"):
        (home / name).unlink()
    deployment.start_node_again("east")
    wait_for(deployment.key("east").exists)
    assert deployment.ask("node", "add", "east", f"--key={deployment.key('east')}").status == 0
    assert AWAY.format("east") in deployment.ends(run)
    assert (home / "node-id").read_text() != former
    deployment.assert_nothing_lost(run, slow)


def test_a_reply_that_is_handed_in_twice(deployment: Deployment, slow: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a node that did not hear that it had arrived; this one is a thread here."""
    once = serving._Service._hand_in
    handed_in = []

    def twice(self: serving._Service, run: int, answer: Answer) -> None:
        once(self, run, answer)
        once(self, run, answer)
        handed_in.append(run)

    monkeypatch.setattr(serving._Service, "_hand_in", twice)
    deployment.node("east").terminate()
    deployment.node("east").wait()
    stop = threading.Event()
    node = threading.Thread(target=serving.serve, args=(ServiceConfig.read(deployment.folder / "east.yaml"), stop))
    node.start()
    try:
        wait_for(deployment.all_online)
        run = deployment.schedule_slow()
        assert "is away" not in deployment.ends(run)
    finally:
        stop.set()
        node.join()
    assert len(handed_in) >= 4  # description, visit and two scores
    deployment.assert_nothing_lost(run, slow)
