import json
import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pages import words
from pages.paging import Page, page_of
from pages.rendering import STATIC


@given(st.text())
def test_what_is_shown_hides_and_turns_nothing(text: str) -> None:
    shown = words.plain(text)
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert words.plain(shown) == shown
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1900, "1.9 kB"),
        (1_900_000, "1.9 MB"),
        (123_456_789, "123 MB"),
        (10**16, "10000 TB"),
    ],
)
def test_sizes_in_words(count: int, said: str) -> None:
    assert words.size(count) == said


def test_numbers_spans_and_lists_in_words() -> None:
    assert words.number(100_000) == "100,000"
    assert words.number(0.12345) == "0.123"
    assert words.number(None) == "–"
    assert words.count(1, "case") == "1 case"
    assert words.count(2, "entry", "entries") == "2 entries"
    assert [words.duration(s) for s in (1, 89, 600, 11_100, 260_000)] == [
        "1 second", "89 seconds", "10 minutes", "3 hours 5 minutes", "3 days",
    ]  # fmt: skip
    assert [words.listed(list(n)) for n in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert words.short("x" * 200, 10) == "x" * 9 + "…"


def test_times_are_those_of_this_machine_and_name_the_day_if_it_is_another() -> None:
    now = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
    local = now.astimezone()
    assert words.clock(now.isoformat(), now) == f"{local:%H:%M}"
    assert words.clock(now.replace(tzinfo=None).isoformat(), now) == f"{local:%H:%M}"
    earlier = (now - timedelta(days=40)).astimezone()
    assert words.clock(earlier, now) == f"{earlier.day} {earlier:%B} {earlier:%H:%M}"
    assert "2025" in words.clock(now - timedelta(days=400), now)


# Paging


@given(st.sets(st.integers(1, 60)), st.integers(1, 7))
def test_pages_hold_every_row_once_in_both_directions(keys: set[int], limit: int) -> None:
    def below(before: int | None, most: int) -> list[int]:
        return sorted((key for key in keys if before is None or key < before), reverse=True)[:most]

    def above(after: int, most: int) -> list[int]:
        return sorted(key for key in keys if key > after)[:most]

    def at(**place: int | None) -> Page[int]:
        return page_of(below, above, lambda key: key, limit=limit, **place)  # type: ignore[arg-type]

    page = at()
    assert page.newer is None
    seen = list(page.rows)
    while page.older is not None:
        page = at(before=page.older)
        seen += page.rows
        assert page.newer is not None
    assert seen == sorted(keys, reverse=True)
    while page.newer is not None:
        page = at(after=page.newer)
    assert list(page.rows) == sorted(keys, reverse=True)[:limit]


# Files of others


def test_vendored_files_are_those_of_the_manifest() -> None:
    manifest = json.loads((STATIC / "vendor" / "manifest.json").read_text())
    there = {path.name for path in (STATIC / "vendor").iterdir()} - {"manifest.json"}
    assert there == {row["file"] for row in manifest} | {row["licence_file"] for row in manifest}
    for row in manifest:
        content = (STATIC / "vendor" / row["file"]).read_bytes()
        assert sha256(content).hexdigest() == row["sha256"], row["file"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", row["version"])


def test_our_own_files_ask_no_other_host() -> None:
    for path in (*STATIC.glob("*.js"), *STATIC.glob("*.css"), *Path(STATIC.parent / "templates").glob("*.html")):
        assert not re.search(
            r"https?://|//[a-z]+\.|@import|innerHTML|eval\(", path.read_text().replace("http://www.w3.org", "")
        ), path
