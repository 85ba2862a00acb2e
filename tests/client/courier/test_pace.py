"""Rate and hours, by a clock of the test's."""

from __future__ import annotations

import threading
from datetime import datetime, time, timedelta

import pytest

from client.consent.site_config import SiteNetwork
from client.courier.errors import StoppedError
from client.courier.transfers.pace import LARGE_FILE_BYTES, Pace, TokenBucket, seconds_until_open


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, start: datetime = datetime(2026, 3, 2, 12)) -> None:
        self.start = start
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.seconds)

    def wait(self, seconds: float) -> bool:
        assert seconds > 0
        self.seconds += seconds
        return False


def pace(clock: Clock, **network: object) -> Pace:
    return Pace(SiteNetwork.model_validate(network), threading.Event(), clock.monotonic, clock.now, clock.wait)


def test_a_bucket_lets_through_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(1000, clock.monotonic, lambda seconds: (clock.wait(seconds), None)[1])
    for _ in range(50):
        bucket.take(200)
    assert clock.seconds == pytest.approx(10)


def test_a_pause_is_not_saved_up() -> None:
    clock = Clock()
    slow = pace(clock, max_megabits=8)
    slow.take(1_000_000)
    clock.seconds += 100
    slow.take(1_000_000)
    slow.take(1_000_000)
    assert clock.seconds == pytest.approx(103)


def test_without_limits_nothing_waits() -> None:
    clock = Clock()
    free = pace(clock)
    free.take(10**12)
    free.wait_for_hours(10**12, "a model")
    assert clock.seconds == 0
    assert free.window == 64 * 2**20


def test_slow_lines_are_asked_in_small_steps() -> None:
    slow = pace(Clock(), max_megabits=1)
    assert slow.window == 20 * 125_000
    assert slow.portion == 16 * 1024
    assert pace(Clock(), max_megabits=10_000).window == 64 * 2**20


NIGHT = (time(20), time(6))
DAY = (time(9, 30), time(17))


@pytest.mark.parametrize(
    ("now", "hours", "seconds"),
    [
        ("12:00", NIGHT, 8 * 3600),
        ("19:59", NIGHT, 60),
        ("20:00", NIGHT, 0),
        ("23:59", NIGHT, 0),
        ("00:00", NIGHT, 0),
        ("05:59", NIGHT, 0),
        ("06:00", NIGHT, 14 * 3600),
        ("09:29", DAY, 60),
        ("09:30", DAY, 0),
        ("16:59", DAY, 0),
        ("17:00", DAY, 16.5 * 3600),
    ],
)
def test_when_the_hours_begin(now: str, hours: tuple[time, time], seconds: float) -> None:
    assert seconds_until_open(datetime.combine(datetime(2026, 3, 2), time.fromisoformat(now)), *hours) == seconds


def test_a_large_file_waits_until_then() -> None:
    clock = Clock()
    at_night = pace(clock, large_files_between=["20:00", "06:00"])
    at_night.wait_for_hours(LARGE_FILE_BYTES, "a small file")
    assert clock.seconds == 0
    at_night.wait_for_hours(LARGE_FILE_BYTES + 1, "a model")
    assert clock.now().time() == time(20)


def test_a_stop_ends_every_wait() -> None:
    stop = threading.Event()
    stop.set()
    busy = Pace(SiteNetwork(max_megabits=1), stop)
    with pytest.raises(StoppedError):
        busy.take(10**9)
    clock = Clock()
    closed = Pace(SiteNetwork(large_files_between=("20:00", "06:00")), stop, now=clock.now)
    with pytest.raises(StoppedError):
        closed.wait_for_hours(10**9, "a model")
