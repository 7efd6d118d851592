"""Serves the overview: beside a service for as long as that lasts, or over a home folder until it is stopped."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from coordinator.dashboard.app import overview_app
from coordinator.home import Home
from coordinator.service_desk import ServiceDesk
from pages.application import hosts_for
from pages.credentials import PEOPLE_FILE, TOKEN_FILE, People, token_at
from pages.serving import Address, Server, say_and_wait


@contextmanager
def overview_at(
    address: Address, home: Home, desk: ServiceDesk | None, token_file: Path | None, names: Sequence[str] = ()
) -> Iterator[str]:
    """The overview at an address while the block lasts; gives the address for browsers.

    `token_file` is made if it is not there; with None nobody needs to sign in, and otherwise persons of the home may do
    so with passwords of their own. `names` are those of this machine beside the address. Raises
    pages.serving.CannotListen, pages.credentials.UnusableSecret.
    """
    address.check(signs_in=token_file is not None)
    token = None if token_file is None else token_at(token_file)
    people = People(home.folder / PEOPLE_FILE)
    app = overview_app(home, desk, token, people=people, token_file=token_file, hosts=hosts_for(address.host, names))
    server = Server(app, address)
    place = server.start()
    try:
        yield place
    finally:
        server.stop()
        app.state.overview.summaries.close()


def run_overview(home: Home, address: Address, *, names: Sequence[str] = (), token: bool = True) -> None:
    """Show what is in a home folder until SIGINT or SIGTERM; nothing can be changed there."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    token_file = home.folder / TOKEN_FILE if token else None
    with overview_at(address, home, None, token_file, names) as place:
        key = f"the token in {token_file}" if token else "no token (--no-token)"
        say_and_wait(f"The overview of {home.folder} is at {place}/ and wants {key}.")
