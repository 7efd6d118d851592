"""`locum serve`: the SuperLink, the queue of runs and the control service, for as long as they are wanted."""

import fcntl
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from coordinator import keys
from coordinator.control import ControlService, serving
from coordinator.dispatcher import Dispatcher
from coordinator.faults import FAILED, exit_status, told
from coordinator.home import Home
from coordinator.journal import Journal
from coordinator.keys import ServerKeys
from coordinator.link import Link
from coordinator.serve_config import ServeConfig
from coordinator.service_desk import ServiceDesk
from coordinator.superlink import NoSuperLink, running

_log = logging.getLogger("locum.coordinator")

RETRY_SECONDS = 5.0


class ServiceBusy(Exception):
    """Another process serves this home, or its port is taken; one sentence."""


def serve(config: ServeConfig, stop: threading.Event) -> None:
    """Serve until `stop` is set; what was queued or carried out then goes on when it is called again.

    Raises ServiceBusy, keys.UnusableKey, coordinator.store.StoreUnusable, OSError, or what the overview raises that
    cannot be shown.
    """
    config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(config.home):
        server_keys = config.keys()
        superlink = config.superlink_config(server_keys)
        keys.secret(superlink.secret)
        token = keys.secret(config.token_file).read_text(encoding="ascii").strip()
        if not token:
            raise keys.UnusableKey(f"{config.token_file}: the token is empty; remove the file, and one is made.")
        home = config.place
        journal = Journal(home.store())
        dispatcher = Dispatcher(home, superlink, journal, config.workers)
        desk = ServiceDesk(home, superlink, journal, dispatcher)
        service = ControlService(home, desk, journal, stop)
        try:
            server = serving(service, server_keys, token, config.control.address)
        except RuntimeError as error:
            raise ServiceBusy(
                f"control: {config.control.address} cannot be listened at; name another host or port."
            ) from error
        _log.info("The control service listens at %s.", config.control.address)
        with ExitStack() as open_things:
            open_things.callback(lambda: server.stop(grace=1.0).wait())
            open_things.enter_context(_shown(config, server_keys, home, desk))
            while not stop.is_set():
                try:
                    with running(superlink) as process, Link(superlink) as link:
                        link.end_all()
                        _log.info("The SuperLink listens at %s.", config.superlink.address)
                        ended = dispatcher.carry_on(_Nodes(link), lambda: stop.is_set() or process.poll() is not None)
                    if not stop.is_set():
                        for run in ended:
                            sentence = f"The SuperLink ended; run {run} goes on when it is there again."
                            journal.write(run, "said", {"sentence": sentence})
                        _log.warning("The SuperLink ended; it is started again. %s may say why.", superlink.log)
                except Exception as error:
                    if exit_status(error) != FAILED and not isinstance(error, httpx.HTTPError):
                        raise
                    _log.warning("%s Trying again in %.0f s.", " ".join(told(error)), RETRY_SECONDS)
                    stop.wait(RETRY_SECONDS)


@contextmanager
def _shown(config: ServeConfig, server_keys: ServerKeys, home: Home, desk: ServiceDesk) -> Iterator[None]:
    """The overview in a browser while the block lasts, if there is to be one."""
    address = config.dashboard_address(server_keys)
    if address is None:
        yield
        return
    from coordinator.dashboard.serving import overview_at
    from pages.serving import CannotListen

    try:
        with overview_at(address, home, desk, config.dashboard_token, config.names) as place:
            _log.info("The overview is at %s/ and wants the token in %s.", place, config.dashboard_token)
            yield
    except CannotListen as error:
        raise ServiceBusy(
            f"dashboard: {address.host}:{address.port} cannot be listened at; name another host or port."
        ) from error


class _Nodes:
    """Of every site with a registered node, whether that is online; what is known while the SuperLink does not say."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._known: Mapping[str, bool] = {}

    def __call__(self) -> Mapping[str, bool]:
        try:
            self._known = {node.name: node.online for node in self._link.nodes()}
        except (httpx.HTTPError, NoSuperLink) as error:
            _log.warning("The SuperLink does not say which nodes are there (%s).", type(error).__name__)
        return self._known


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the service's lock, which the system gives back when the process dies, however it dies."""
    with (home / "serve.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServiceBusy(f"{home}: another process serves this home; stop it first.") from error
        yield
