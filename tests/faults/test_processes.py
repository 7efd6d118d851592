"""Kill the processes of a deployment in the middle of a visit: what the user sees, and that nothing is lost."""

import re

import pytest

from tests.conftest import Desk
from tests.coordinator.serving import wait_for
from tests.faults.deployment import AWAY, Deployment, nobody_writes

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


def test_the_process_of_the_run(deployment: Deployment, slow: Desk) -> None:
    run = deployment.under_way_at_east()
    (worker,) = deployment.children("coordinator.worker")
    worker.kill()
    assert f"The process of run {run} ended by SIGKILL; it is taken up anew." in deployment.ends(run)
    deployment.assert_nothing_lost(run, slow)


def test_the_superlink(deployment: Deployment, slow: Desk) -> None:
    run = deployment.under_way_at_east()
    (superlink,) = deployment.children("coordinator.superlink")
    superlink.kill()
    who_notices_first = (
        f"(The SuperLink ended; run {run} goes on|Run {run} waits until .*: The SuperLink does not answer)"
    )
    assert re.search(who_notices_first, deployment.ends(run))
    deployment.assert_nothing_lost(run, slow)


def test_the_service_with_all_its_children(deployment: Deployment, slow: Desk) -> None:
    run = deployment.under_way_at_east()
    watcher = deployment.process("watch.log", "watch", run, *deployment.options)
    said = deployment.folder / "watch.log"
    wait_for(lambda: "stop 0 at north: done" in said.read_text())
    deployment.kill()
    deployment.start()
    assert watcher.wait(240) == 0
    assert "The connection to the coordinator was lost; looking for it again." in said.read_text()
    assert said.read_text().count("stop 1 at east: done") == 1
    deployment.assert_nothing_lost(run, slow)


def test_the_coordinator_between_artifact_and_commit(deployment: Deployment, slow: Desk) -> None:
    """No write gets through once the reply is on its way, so nothing is committed when all of it is killed."""
    before = deployment.replies("north")
    for artifact in deployment.artifacts():
        artifact.unlink()  # of earlier runs, whose bytes are the same
    run = deployment.schedule_slow()
    deployment.wait_until_under_way("north", run, 0)
    deployment.proxies["north"].cut("stall")
    wait_for(lambda: bool(deployment.replies("north") - before))
    with nobody_writes(deployment.home.folder / "coordinator.db"):
        deployment.proxies["north"].let_go()
        wait_for(lambda: bool(deployment.artifacts()))
        deployment.kill()
    assert [stop.status for stop in deployment.home.store().run(run).stops] == ["running", "pending"]
    deployment.start()
    deployment.ends(run)
    deployment.assert_nothing_lost(run, slow)


def test_the_process_that_does_the_nodes_work(deployment: Deployment, slow: Desk) -> None:
    run = deployment.under_way_at_east()
    for process in deployment.work("east"):
        process.kill()
    said = deployment.ends(run, status=1)
    assert re.search(rf"locum: Run {run} failed at stop 1: Site east: The process .* was killed.* \[DIED\]\n", said)
    assert deployment.ask("resume", run, "--no-report").status == 0
    deployment.assert_nothing_lost(run, slow)


def test_the_node_in_the_visit(deployment: Deployment, slow: Desk) -> None:
    run = deployment.under_way_at_east()
    deployment.kill_node("east")
    deployment.start_node_again("east")
    assert AWAY.format("east") in deployment.ends(run)
    deployment.assert_nothing_lost(run, slow)


def test_the_node_for_longer_than_a_minute(deployment: Deployment, slow: Desk) -> None:
    run = deployment.under_way_at_east()
    deployment.kill_node("east")
    wait_for(lambda: any(AWAY.format("east") in str(event.fields) for event in deployment.events(run)))
    deployment.start_node_again("east")
    deployment.ends(run)
    deployment.assert_nothing_lost(run, slow)


def test_the_node_between_work_and_reply(deployment: Deployment, slow: Desk) -> None:
    """The network holds the reply back until the node is dead."""
    before = deployment.replies("east")
    run = deployment.under_way_at_east()
    deployment.proxies["east"].cut("stall")
    wait_for(lambda: bool(deployment.replies("east") - before))
    deployment.kill_node("east")
    deployment.proxies["east"].mend()
    deployment.start_node_again("east")
    deployment.ends(run)
    deployment.assert_nothing_lost(run, slow)


def test_the_node_while_it_scores(deployment: Deployment, slow: Desk) -> None:
    """A lost message is noticed that is no visit. The ledger is kept busy, so that the message is in the works."""
    run = deployment.under_way_at_east()
    with nobody_writes(deployment.folder / "north" / "node.db"):
        wait_for(lambda: len(deployment.work("north")) > 1)
        deployment.kill_node("north")
    deployment.start_node_again("north")
    assert AWAY.format("north") in deployment.ends(run)
    deployment.assert_nothing_lost(run, slow)
