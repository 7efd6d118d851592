"""What happens in a run, as it happens: for progress bars, plain lines, the control service."""

from collections.abc import Mapping

from protos.software import Software


class Listener:
    """Told of everything a person may want to see live; this one does nothing with it."""

    def run_began(self, run: str, stops: int, done: int) -> None:
        """A run of so many stops begins or goes on."""

    def describing(self, site: str) -> None:
        """A site is asked to describe itself: it reads its cases, so its answer may be long in coming."""

    def described(self, site: str, cases: Mapping[str, int]) -> None:
        """A site has described itself: part -> cases, under the run's split."""

    def introduced(self, site: str, software: Software | None) -> None:
        """A site has said which software is at work there; None: it did not say."""

    def stop_began(
        self, stop: int, sites: tuple[str, ...], rounds: int, done: int, rehearsing: tuple[str, ...] = ()
    ) -> None:
        """A stop begins; `done` of its rounds were done before a crash, `rehearsing` sites take part from memory."""

    def stepped(self, stop: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """A step within a visit, or a round within a stop of many rounds."""

    def waiting(self, site: str, seconds: float) -> None:
        """A site is away and waited for, so many seconds at most."""

    def held(self, site: str, seconds: float) -> None:
        """What is to leave a site waits until a person there releases it; that is waited for so long at most."""

    def skipped(self, stop: int, sites: tuple[str, ...], by: str) -> None:
        """A stop is gone on without, in the name of a person, since its site was away for too long."""

    def stop_ended(self, stop: int, sites: tuple[str, ...], seconds: float) -> None:
        """A stop is committed."""

    def scoring(self, stop: int, site: str) -> None:
        """A site is asked to score the stop's model."""

    def scored(self, stop: int, site: str, dsc: float | None) -> None:
        """A site's score is committed; None when the site could not score."""

    def said(self, sentence: str) -> None:
        """Something else that a person should read, such as what the run waits for."""

    def run_ended(self, run: str, status: str) -> None:
        """The run ended."""
