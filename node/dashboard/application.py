"""Puts the pages of a node's dashboard together."""

from hashlib import sha256
from importlib import metadata

from fastapi import FastAPI

from node.dashboard.crossed import crossed_router
from node.dashboard.data import data_router
from node.dashboard.house import House
from node.dashboard.now import now_router
from node.dashboard.policy import policy_router
from node.dashboard.reading import Reader
from node.dashboard.replay import replay_router
from node.dashboard.scores import scores_router
from pages.access import Access
from pages.application import LOOPBACK, create_app
from pages.credentials import PEOPLE_FILE, TOKEN_FILE, People, token_at
from pages.live import Live


def dashboard_for(reader: Reader, *, token: bool = True, hosts: frozenset[str] = LOOPBACK) -> tuple[FastAPI, House]:
    """The application that shows the node whose database is read, and its house, whose jobs are to be closed.

    Without `token` everybody who reaches it is let in. Raises pages.credentials.UnusableSecret.
    """
    home = reader.home
    access = Access(token_at(home / TOKEN_FILE), People(home / PEOPLE_FILE)) if token else Access(None)
    house = House.of(reader, must_sign_in=token)
    pages = (now_router, crossed_router, data_router, scores_router, replay_router, policy_router)
    routers = [make(house) for make in pages]
    app = create_app(
        house.look,
        access,
        routers,
        cookie=f"locum-{sha256(str(home.resolve()).encode()).hexdigest()[:8]}",
        version=metadata.version("locum"),
        hosts=hosts,
        live=Live(house.state),
    )
    return app, house
