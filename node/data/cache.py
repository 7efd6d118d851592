"""Decoded sites kept between messages, so that a visit and the scores after it decode each file once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Decoded(Protocol):
    """Cases of a site, decoded."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held at present."""
        ...


DecodedT = TypeVar("DecodedT", bound=Decoded)


class SiteCache(Generic[DecodedT]):
    """The most recently used sites, up to a budget in bytes; the one in use is always kept.

    A site decodes lazily, so its size is taken when the next one is asked for.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._sites: OrderedDict[Hashable, DecodedT] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}
        self._total = 0

    def get(self, key: Hashable, open_site: Callable[[], DecodedT]) -> DecodedT:
        """The site kept under `key`, or the one that `open_site` opens."""
        if self._sites:
            self._measure(next(reversed(self._sites)))
        if key not in self._sites:
            self._sites[key] = open_site()
        self._sites.move_to_end(key)
        while self._total > self._budget and len(self._sites) > 1:
            oldest, _ = self._sites.popitem(last=False)
            self._total -= self._sizes.pop(oldest, 0)
        return self._sites[key]

    def _measure(self, key: Hashable) -> None:
        size = self._sites[key].nbytes
        self._total += size - self._sizes.get(key, 0)
        self._sizes[key] = size
