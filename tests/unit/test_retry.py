from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from harvester.domain.errors import (
    AccountRefused,
    EdgeBlocked,
    KeyRefused,
    LuneError,
    NotFound,
    RateLimited,
    Redirected,
    RequestRefused,
    ServerFault,
    UnexpectedAnswer,
    Unreachable,
)
from harvester.lune.responses import ResponseTooLarge
from harvester.lune.retry import Retries, StaleConnection, parse_retry_after

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


class Attempts:
    """Fail with each of these in turn, then succeed; keep what was slept and paused."""

    def __init__(self, *errors: BaseException) -> None:
        self._errors = list(errors)
        self.made = 0
        self.slept: list[float] = []
        self.paused: list[float] = []

    async def __call__(self) -> str:
        self.made += 1
        if self._errors:
            raise self._errors.pop(0)
        return "answer"

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def run(self) -> str:
        return await Retries(self.paused.append).run(self, self._sleep)


def fail(kind: type[LuneError], retry_after: float | None = None) -> LuneError:
    return kind("failed", method="GET", path="/v1/orders", retry_after=retry_after)


@pytest.mark.parametrize("kind", [Unreachable, ServerFault, EdgeBlocked])
async def test_a_fault_gets_four_tries_with_doubling_waits(kind: type[LuneError]) -> None:
    attempts = Attempts(*(fail(kind) for _ in range(9)))
    with pytest.raises(kind):
        await attempts.run()
    assert attempts.made == 4
    for slept, least in zip(attempts.slept, [1, 2, 4], strict=True):
        assert least <= slept <= least + 1
    assert attempts.paused == []


async def test_the_fourth_try_may_succeed() -> None:
    attempts = Attempts(*(fail(ServerFault) for _ in range(3)))
    assert await attempts.run() == "answer"


@pytest.mark.parametrize(
    "kind", [NotFound, KeyRefused, AccountRefused, RequestRefused, Redirected, ResponseTooLarge]
)
async def test_what_asking_again_cannot_mend_is_raised_at_once(kind: type[LuneError]) -> None:
    attempts = Attempts(fail(kind))
    with pytest.raises(kind):
        await attempts.run()
    assert (attempts.made, attempts.slept) == (1, [])


async def test_errors_of_the_program_are_not_retried() -> None:
    attempts = Attempts(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await attempts.run()
    assert attempts.made == 1


async def test_an_unexpected_shape_gets_one_more_try() -> None:
    attempts = Attempts(*(fail(UnexpectedAnswer) for _ in range(9)))
    with pytest.raises(UnexpectedAnswer):
        await attempts.run()
    assert attempts.made == 2


async def test_an_unexpected_shape_among_faults_counts_as_one_of_the_four() -> None:
    kinds = [ServerFault, UnexpectedAnswer, ServerFault, ServerFault]
    attempts = Attempts(*(fail(kind) for kind in kinds))
    with pytest.raises(ServerFault):
        await attempts.run()
    assert attempts.made == 4


async def test_retry_after_is_a_floor_under_the_wait() -> None:
    attempts = Attempts(fail(ServerFault, 120.0), fail(ServerFault, 0.1))
    await attempts.run()
    assert attempts.slept[0] == 120.0
    assert attempts.slept[1] >= 2


async def test_429_pauses_everybody_longer_each_time_and_spends_no_try() -> None:
    attempts = Attempts(*(fail(RateLimited) for _ in range(9)), *(fail(ServerFault),) * 3)
    assert await attempts.run() == "answer"
    assert attempts.made == 13
    assert attempts.slept[:9] == [0] * 9  # the rate limiter's pause is the wait
    for paused, least in zip(attempts.paused, [1, 2, 4, 8, 16, 32, 60, 60, 60], strict=True):
        assert least <= paused <= min(least + 1, 60)


async def test_the_tenth_429_is_raised_and_pauses_all_the_same() -> None:
    attempts = Attempts(*(fail(RateLimited) for _ in range(20)))
    with pytest.raises(RateLimited):
        await attempts.run()
    assert (attempts.made, len(attempts.paused)) == (10, 10)


async def test_retry_after_is_a_floor_under_the_pause() -> None:
    attempts = Attempts(fail(RateLimited, 200.0))
    await attempts.run()
    assert attempts.paused == [200.0]


async def test_a_stale_connection_is_replaced_at_once_and_only_once_for_free() -> None:
    attempts = Attempts(*(fail(StaleConnection) for _ in range(9)))
    with pytest.raises(StaleConnection):
        await attempts.run()
    assert attempts.made == 5
    assert attempts.slept[0] == 0
    assert attempts.slept[1] >= 1


async def test_each_retry_is_logged_with_its_reason() -> None:
    attempts = Attempts(fail(ServerFault))
    with capture_logs() as logs:
        await attempts.run()
    assert [(line["event"], line["error"]) for line in logs] == [
        ("request repeated", "ServerFault")
    ]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("1000000000", 300.0),
        ("-1", None),
        ("abc", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("1, 2", None),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tue, 14 Nov 2023 22:12:20 GMT", None),
        ("Wed, 14 Nov 2029 22:14:20 GMT", 300.0),
        ("Tue, 99 Nov 2023 22:14:20 GMT", None),
    ],
)
def test_retry_after_is_read_clamped_and_junk_ignored(
    header: str | None, seconds: float | None
) -> None:
    assert parse_retry_after(header, NOW) == seconds
