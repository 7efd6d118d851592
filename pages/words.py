"""Numbers, sizes and times in plain words, and texts from outside as they may be shown."""

import unicodedata
from datetime import UTC, datetime

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_SHOWN_AS_THEMSELVES = frozenset("\n\t")


def plain(text: str) -> str:
    """`text` with every control, format and unassigned character made visible, so that none can hide or turn others.

    A line feed and a tab stay. What is left is no markup yet: templates escape.
    """
    if text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character.isprintable() or character in _SHOWN_AS_THEMSELVES:
        return character
    if unicodedata.category(character) == "Zs":  # other widths of a space
        return " "
    number = ord(character)
    return chr(0x2400 + number) if number < 0x20 else f"\\u{number:04x}"


def short(text: str, most: int = 160) -> str:
    """`text` cut to `most` characters, the last of which then says so."""
    return text if len(text) <= most else text[: most - 1] + "…"


def size(count: float) -> str:
    """A number of bytes: `1.9 MB`."""
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 1000 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits after the point, whole ones with separators; nothing known is a dash."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}"


def count(of: int, one: str, many: str = "") -> str:
    """`1 case`, `2 cases`."""
    return f"{number(of)} {one if of == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """A span of time: `40 seconds`, `12 minutes`, `3 hours 5 minutes`."""
    whole = round(seconds)
    if whole < 90:
        return count(whole, "second")
    minutes = round(seconds / 60)
    if minutes < 90:
        return count(minutes, "minute")
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return count(hours, "hour") + (f" {count(minutes, 'minute')}" if minutes else "")
    return count(round(hours / 24), "day")


def moment(time: str | datetime) -> datetime:
    """A time in ISO format, or as it is, in this machine's own zone; without a zone it is UTC."""
    found = time if isinstance(time, datetime) else datetime.fromisoformat(time)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone()


def clock(time: str | datetime, now: datetime | None = None) -> str:
    """`14:02` today, `30 November 14:02` in this year, with the year otherwise."""
    found, today = moment(time), (now or datetime.now(UTC)).astimezone()
    if found.date() == today.date():
        return f"{found:%H:%M}"
    day = f"{found.day} {found:%B}"
    return f"{day} {found:%H:%M}" if found.year == today.year else f"{day} {found.year} {found:%H:%M}"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
