"""Pages of a long table by its key: each is read from an index, however far down it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

RowT = TypeVar("RowT")

PAGE = 50
MOST = 500


@dataclass(frozen=True)
class Page(Generic[RowT]):
    """Some rows, newest (highest key) first, and the keys from which the pages beside it begin; None: there is none.

    `older`: rows with keys below it come next. `newer`: rows with keys above it came before.
    """

    rows: Sequence[RowT]
    older: int | None
    newer: int | None


def page_of(
    below: Callable[[int | None, int], Sequence[RowT]],
    above: Callable[[int, int], Sequence[RowT]],
    key: Callable[[RowT], int],
    *,
    before: int | None = None,
    after: int | None = None,
    limit: int = PAGE,
) -> Page[RowT]:
    """The page of rows with keys below `before` or above `after`; without either the newest.

    `below(before, limit)` returns rows by falling key, `above(after, limit)` by rising key.
    """
    if after is not None:
        rising = above(after, limit + 1)
        if len(rising) < limit:  # the first page is full even if it is reached from behind
            return page_of(below, above, key, limit=limit)
        rows = list(reversed(rising[:limit]))
        return Page(rows, older=key(rows[-1]), newer=key(rows[0]) if len(rising) > limit else None)
    falling = list(below(before, limit + 1))
    rows = falling[:limit]
    if not rows:
        return Page((), None, None)
    newer = key(rows[0]) if before is not None and above(key(rows[0]), 1) else None
    return Page(rows, older=key(rows[-1]) if len(falling) > limit else None, newer=newer)
