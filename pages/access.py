"""Who is let in: a token, passwords of named persons, sessions in memory, and how often one may guess."""

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from pages.credentials import People, UnusableSecret

LASTS_SECONDS = 12 * 3600.0
MOST_SESSIONS = 1000
WINDOW_SECONDS = 60.0
MOST_PER_ADDRESS, MOST_IN_ALL = 10, 100  # failed attempts in that window
_MOST_ADDRESSES = 10_000


@dataclass(frozen=True)
class Session:
    """Somebody who is signed in. `person` is the name that changes are written down under.

    `proven` says that the name was signed in with its own password, and not stated beside the shared token; `stamp` is
    then that of the password (credentials.People.stamp).
    """

    person: str
    proven: bool
    stamp: bytes | None = field(default=None, repr=False)
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    until: float = field(default_factory=lambda: time.monotonic() + LASTS_SECONDS)

    @property
    def over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() > self.until

    def signed(self, stated: str) -> str:
        """The name that a change is written down under: the proven one, whatever is stated; else that, marked so.

        Empty if there is neither.
        """
        if self.proven:
            return self.person
        return f"{stated} (name stated)" if stated else ""

    def vouches(self, csrf: str) -> bool:
        """Whether `csrf` is this session's token against forged requests."""
        return same(csrf, self.csrf)


class Guesses:
    """Failed attempts of the last minute, per address and in all; bounded whatever arrives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_address: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque(maxlen=MOST_IN_ALL)

    def too_many(self, address: str) -> bool:
        """Whether this address, or all together, must wait."""
        with self._lock:
            now = time.monotonic()
            return self._full(self._by_address.get(address, deque()), MOST_PER_ADDRESS, now) or self._full(
                self._all, MOST_IN_ALL, now
            )

    def failed(self, address: str) -> None:
        """Count a failure."""
        with self._lock:
            now = time.monotonic()
            self._by_address.setdefault(address, deque(maxlen=MOST_PER_ADDRESS)).append(now)
            self._by_address.move_to_end(address)
            self._all.append(now)
            while len(self._by_address) > _MOST_ADDRESSES:
                self._by_address.popitem(last=False)

    @staticmethod
    def _full(times: "deque[float]", most: int, now: float) -> bool:
        return len(times) == most and now - times[0] < WINDOW_SECONDS


class TooManyGuesses(Exception):
    """An address must wait before it may try again."""


class Access:
    """Decides who is let in. With `token` None everybody is, which only loopback may be told to do.

    Sessions live in this process alone: when it ends, everybody signs in anew. A person's end with their password.
    """

    def __init__(self, token: str | None, people: People | None = None) -> None:
        self._token = token
        self.people = people
        self._guesses = Guesses()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()
        self._everybody = None if token is not None else Session("", proven=False, until=float("inf"))

    @property
    def is_open(self) -> bool:
        """Whether nobody needs to sign in."""
        return self._everybody is not None

    def sign_in(self, address: str, name: str, secret: str) -> tuple[str, Session] | None:
        """A new session's key and the session, if `secret` is the token or `name`'s password; None if it is not.

        May take some 50 ms. Raises TooManyGuesses.
        """
        if self._guesses.too_many(address):
            raise TooManyGuesses
        stamp = None if self.people is None or not name else self.people.stamp(name)
        proven = self.people is not None and bool(name) and self.people.check(name, secret)
        if not proven and not self._is_token(secret):
            self._guesses.failed(address)
            return None
        key, session = secrets.token_urlsafe(32), Session(name, proven, stamp if proven else None)
        with self._lock:
            self._sessions[_digest(key)] = session
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return key, session

    def session(self, key: str) -> Session | None:
        """The session with this key, or everybody's; None if there is none or its time is up."""
        if self._everybody is not None:
            return self._everybody
        with self._lock:
            found = self._sessions.get(_digest(key))
        if found is not None and (found.over or not self._still_let_in(found)):
            self.sign_out(key)
            return None
        return found

    def bearer(self, address: str, token: str) -> bool:
        """Whether a program that shows this token is let in. Raises TooManyGuesses."""
        if self._guesses.too_many(address):
            raise TooManyGuesses
        if self._is_token(token):
            return True
        self._guesses.failed(address)
        return False

    def sign_out(self, key: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(_digest(key), None)

    def _still_let_in(self, session: Session) -> bool:
        """Whether the password that a person signed in with is still theirs."""
        if not session.proven or self.people is None:
            return True
        try:
            return self.people.stamp(session.person) == session.stamp
        except UnusableSecret:
            return False

    def _is_token(self, given: str) -> bool:
        return self._token is not None and same(given, self._token)


def same(given: str, wanted: str) -> bool:
    """Compare two texts in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


def _digest(key: str) -> str:
    """Sessions are looked up under a digest, so that no comparison of keys can be timed."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
