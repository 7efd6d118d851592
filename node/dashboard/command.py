"""`locum-node dashboard`: listens until it is stopped."""

import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from node.dashboard.application import dashboard_for
from node.dashboard.reading import NoNode, open_reader
from pages.application import hosts_for
from pages.credentials import TOKEN_FILE, UnusableSecret
from pages.serving import Address, CannotListen, Server, say_and_wait


class CannotShow(Exception):
    """The dashboard cannot be shown; one sentence with the remedy."""


def run_dashboard(home: Path, address: Address, *, names: Sequence[str] = (), token: bool = True) -> None:
    """Serve the dashboard of the node at `home` until SIGINT or SIGTERM. Raises CannotShow."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        address.check(signs_in=token)
        reader = open_reader(home)
        app, house = dashboard_for(reader, token=token, hosts=hosts_for(address.host, names))
        threading.Thread(target=house.traffic.refresh, daemon=True).start()  # reads a long ledger once
        server = Server(app, address)
        place = server.start()
    except (NoNode, UnusableSecret, CannotListen) as fault:
        raise CannotShow(str(fault)) from fault
    except (SQLAlchemyError, OSError) as error:
        reason = getattr(error, "orig", error)
        raise CannotShow(f"{home}: the node's folder cannot be used ({reason}); see to its owner and mode.") from error
    key = f"the token in {home / TOKEN_FILE}" if token else "no token (--no-token)"
    say_and_wait(f"The dashboard of {house.site} is at {place}/ and wants {key}.")
    house.jobs.close()
    server.stop()
