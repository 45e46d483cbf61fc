"""The circuit breaker in front of a KMS, with the time as an argument."""

import pytest

from trustauthority.adapters.keyroom.breaker import Breaker

REST_S = 5.0


@pytest.fixture
def breaker():
    return Breaker(trip_after=3, rest_s=REST_S)


def trip(breaker, now=0.0):
    for _ in range(3):
        assert breaker.wait_s(now) is None
        breaker.failed(now)


def test_a_few_failures_change_nothing(breaker):
    """One lost packet is no outage."""
    for _ in range(10):
        for _ in range(2):
            assert breaker.wait_s(0) is None
            breaker.failed(0)
        breaker.answered()


def test_a_dead_kms_is_left_alone(breaker):
    """N56: after three outages in a row, orders are refused at once, and told for how long."""
    trip(breaker)
    assert breaker.wait_s(0) == REST_S
    assert breaker.wait_s(4.0) == 1.0


def test_one_order_tries_again(breaker):
    """Recovery needs nobody: after the rest one order goes ahead, the others wait for its outcome."""
    trip(breaker)
    assert breaker.wait_s(REST_S) is None
    assert breaker.wait_s(REST_S) is not None
    breaker.answered()
    assert [breaker.wait_s(REST_S) for _ in range(3)] == [None] * 3


def test_a_trial_that_fails_starts_another_rest(breaker):
    """A KMS that comes back half is not flooded."""
    trip(breaker)
    assert breaker.wait_s(REST_S) is None
    breaker.failed(REST_S)
    assert breaker.wait_s(REST_S + 1) == REST_S - 1
    assert breaker.wait_s(2 * REST_S) is None


def test_a_trial_that_was_given_up_is_not_the_last(breaker):
    """A caller that went away in the middle must not leave the KMS closed for ever."""
    trip(breaker)
    assert breaker.wait_s(REST_S) is None
    breaker.gave_up()
    assert breaker.wait_s(REST_S) is None


def test_giving_up_is_no_success(breaker):
    """Callers that leave do not hide an outage."""
    for _ in range(2):
        breaker.failed(0)
    breaker.gave_up()
    breaker.failed(0)
    assert breaker.wait_s(0) is not None
