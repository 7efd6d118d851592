"""Times as people write them."""

from datetime import UTC, datetime, timedelta

import pytest

from coordinator.moments import NoTime, moment


def test_a_whole_time_is_that_time() -> None:
    assert moment("2031-05-17T22:30:00+02:00") == datetime(2031, 5, 17, 20, 30, tzinfo=UTC)
    assert moment("2031-05-17T22:30") == datetime(2031, 5, 17, 22, 30).astimezone()


def test_an_hour_alone_is_the_next_such() -> None:
    for hours in (-1, 1):
        wanted = (datetime.now().astimezone() + timedelta(hours=hours)).replace(second=0, microsecond=0)
        found = moment(wanted.strftime("%H:%M"))
        now = datetime.now(UTC)
        assert now - timedelta(minutes=1) < found <= now + timedelta(days=1, hours=1)
        assert found.astimezone().strftime("%H:%M") == wanted.strftime("%H:%M")


@pytest.mark.parametrize("text", ["", "tonight", "25:00", "2031-13-01", "2031-05-17T22:30+99:00"])
def test_what_is_no_time_is_said_to_be_none(text: str) -> None:
    with pytest.raises(NoTime, match=r"^--at .*: no time; write "):
        moment(text)
