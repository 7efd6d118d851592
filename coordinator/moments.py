"""Times as people write them."""

from datetime import UTC, datetime, time, timedelta


class NoTime(ValueError):
    """A text is no time; one sentence."""


def moment(text: str) -> datetime:
    """The time, in UTC, that ISO 8601 text means, in this machine's zone unless told; of an hour alone the next such.

    Raises NoTime.
    """
    now = datetime.now().astimezone()
    try:
        try:
            hour = time.fromisoformat(text)
        except ValueError:
            return datetime.fromisoformat(text).astimezone(UTC)
        today = datetime.combine(now.date(), hour).astimezone()
        return (today if today > now else today + timedelta(days=1)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise NoTime(f"--at {text}: no time; write 2031-05-17T22:30, or 22:30 for the next such.") from error
