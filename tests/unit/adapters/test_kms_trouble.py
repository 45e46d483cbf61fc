"""From a library's exception to a sentence: the cause is found, and nothing of a peer is quoted."""

import socket
import ssl
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustauthority.adapters.kms.credentials import (
    DAY_MS,
    MAX_SKEW_MS,
    read_word,
    with_expiry,
    with_skew,
)
from trustauthority.adapters.kms.port import is_outage
from trustauthority.adapters.kms.trouble import trouble_of
from trustauthority.errors import InsecureFile
from trustauthority.model.kms import HealthState, KmsHealth

GOOD = KmsHealth(state=HealthState.OK, detail="KMS answers")
BAD = replace(GOOD, state=HealthState.ERROR, detail="KMS is sealed")
NOW_MS = 1_790_000_000_000


def tls_alert(name):
    error = ssl.SSLError(1, f"[SSL: {name}] canary")
    error.reason = name
    return error


class Wrapper(OSError):
    """As requests and botocore wrap what happened, each in a way of its own."""

    def __init__(self, *arguments, **kwargs):
        super().__init__(*arguments)
        self.kwargs = kwargs


class TestTrouble:
    @pytest.mark.parametrize(
        ("cause", "says", "outage", "flags"),
        [
            (ConnectionRefusedError("canary"), "is it running", True, (None, None)),
            (ConnectionResetError("canary"), "closed the connection", True, (None, None)),
            (TimeoutError("canary"), "in time", True, (None, None)),
            (socket.gaierror("canary"), "does not resolve", True, (None, None)),
            (ssl.SSLEOFError("canary"), "closed the connection", True, (None, None)),
            (InsecureFile("canary"), "open to others", False, (None, None)),
            (FileNotFoundError("canary"), "missing or unreadable", False, (None, None)),
            (tls_alert("TLSV1_ALERT_UNKNOWN_CA"), "certificate: unknown ca", False, (True, False)),
            (
                tls_alert("SSLV3_ALERT_CERTIFICATE_EXPIRED"),
                "certificate: certificate expired",
                False,
                (True, False),
            ),
            (
                tls_alert("TLSV13_ALERT_CERTIFICATE_REQUIRED"),
                "certificate: certificate required",
                False,
                (True, False),
            ),
            (tls_alert("WRONG_VERSION_NUMBER"), "no TLS connection", True, (None, None)),
            (ValueError("canary"), "can't be read", True, (None, None)),
        ],
    )
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda e: e,
            lambda e: Wrapper("outer", e),
            lambda e: Wrapper("outer", error=e),
            lambda e: Wrapper(Wrapper(Wrapper(e))),
        ],
        ids=["bare", "argument", "attribute", "deep"],
    )
    def test_the_cause_is_found(self, cause, says, outage, flags, wrap):
        """However a library wraps it; the two directions of trust are told apart."""
        trouble = trouble_of(wrap(cause))
        error = trouble.error("kms.example")
        assert says in error.message
        assert "canary" not in error.message
        assert is_outage(error) is outage
        assert (trouble.trusts_server, trouble.trusted_by_server) == flags

    @given(text=st.text(min_size=8))
    def test_nothing_of_an_unknown_failure_is_quoted(self, text):
        """N69: an exception may hold what it choked on: only its type is told."""
        message = trouble_of(RuntimeError(text)).error("kms").message
        assert message == "KMS kms answered with what can't be read (RuntimeError)"

    def test_a_ring_of_causes_ends(self):
        """Exceptions may refer to each other."""
        one, two = Wrapper("one"), Wrapper("two")
        one.__context__, two.__context__ = two, one
        assert "can't be read" in trouble_of(one).says


class TestExpiry:
    @pytest.mark.parametrize(
        ("left_ms", "state"),
        [
            (31 * DAY_MS, HealthState.OK),
            (30 * DAY_MS, HealthState.WARNING),
            (1, HealthState.WARNING),
            (0, HealthState.ERROR),
            (-1, HealthState.ERROR),
        ],
    )
    def test_an_end_is_told_before_it_comes(self, left_ms, state):
        """30 days before: a warning; then an error, both with what to do."""
        end_ms = NOW_MS + left_ms
        health = with_expiry(
            GOOD, what="our certificate", end_ms=end_ms, now_ms=NOW_MS, warn_ms=30 * DAY_MS
        )
        assert (health.state, health.credential_expires_ms) == (state, end_ms)
        assert ("our certificate" in health.detail) is (state is not HealthState.OK)

    def test_an_error_is_not_hidden_by_a_warning(self):
        """What is broken now comes before what will be."""
        health = with_expiry(BAD, what="it", end_ms=NOW_MS + 1, now_ms=NOW_MS, warn_ms=30 * DAY_MS)
        assert (health.state, health.detail) == (HealthState.ERROR, BAD.detail)

    def test_no_end_is_no_warning(self):
        """A token without an end, or a file that can't be read, says nothing here."""
        assert with_expiry(GOOD, what="it", end_ms=None, now_ms=NOW_MS, warn_ms=1) == GOOD


class TestSkew:
    @pytest.mark.parametrize("off_ms", [0, MAX_SKEW_MS, -MAX_SKEW_MS])
    def test_a_minute_is_nothing(self, off_ms):
        """Answers take their time."""
        assert with_skew(GOOD, server_ms=NOW_MS + off_ms, now_ms=NOW_MS) == GOOD

    @pytest.mark.parametrize(
        ("off_ms", "words"), [(61_000, "61 s ahead of"), (-61_000, "61 s behind")]
    )
    def test_more_is_told(self, off_ms, words):
        """With the direction, so that the right machine is looked at."""
        health = with_skew(GOOD, server_ms=NOW_MS + off_ms, now_ms=NOW_MS)
        assert health.state is HealthState.WARNING
        assert words in health.detail
        assert with_skew(BAD, server_ms=NOW_MS + off_ms, now_ms=NOW_MS).state is HealthState.ERROR


def test_a_word_is_one_line_of_a_private_file(tmp_path):
    """The end of the line does not belong to it; a space in it does."""
    path = tmp_path / "pin"
    path.touch(mode=0o600)
    path.write_text("12 34\r\n")
    assert read_word(path) == "12 34"
    path.chmod(0o640)
    with pytest.raises(InsecureFile):
        read_word(path)
