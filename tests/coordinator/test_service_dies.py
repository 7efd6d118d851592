"""The control service's runs side by side, and when processes die."""

from collections.abc import Iterator

import pytest

from tests.conftest import Desk
from tests.coordinator.serving import Served, assert_as_in_process, in_process, two_sites

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]  # many processes, which a busy machine keeps waiting


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with the nodes of north and east, for all tests of the module."""
    with two_sites(tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The same scenario in process."""
    return in_process(tmp_path_factory.mktemp("in-process"))


def test_a_run_goes_on_whatever_dies_and_so_do_those_who_watch(served: Served, expected: Desk) -> None:
    """Its own process, then the service with all its children, then the SuperLink."""
    (run,) = served.schedule()
    watcher = served.process("watch.log", "watch", run, *served.options)

    served.wait_for_event(run, "stop_began")
    (worker,) = served.children("coordinator.worker")
    worker.kill()
    served.wait_for_event(run, "stop_ended")
    served.kill()
    served.start()
    served.wait_for_event(run, "run_began", 3)
    (superlink,) = served.children("coordinator.superlink")
    superlink.kill()

    assert watcher.wait(240) == 0
    said = (served.folder / "watch.log").read_text()
    assert f"The process of run {run} ended by SIGKILL; it is taken up anew." in said
    assert "The connection to the coordinator was lost; looking for it again." in said
    assert said.count("stop 0 at north: done") == said.count("stop 1 at east: done") == 1
    assert "The SuperLink ended; it is started again." in served.log
    assert_as_in_process(served, run, expected)


def test_runs_at_one_site_wait_for_each_other_and_others_do_not(served: Served) -> None:
    north, again = served.schedule("--set=sites=[north]", "--set=study={strategies: [finetune, finetune]}")
    (east,) = served.schedule("--set=sites=[east]")
    for run in (north, again, east):
        assert served.ask("cancel", run).status == 0
    with served.client() as client:
        for run in (north, again, east):
            client.resume(run)
    began, ended = {}, {}
    for run in (north, again, east):
        assert served.ask("watch", run).status == 0
        began[run], ended[run] = ([event.time for event in served.events(run) if event.kind == kind][-1]
                                  for kind in ("run_began", "run_ended"))  # fmt: skip
    assert began[north] < ended[east]
    assert began[east] < ended[north]
    assert ended[north] <= began[again]
    said = [event.fields.get("sentence") for event in served.events(again)]
    assert f"Run {again} waits for site north, where it is the turn of run {north}." in said
