"""Challenges: ours, fresh, and for this cluster, host and purpose; or refused."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustauthority.errors import ChallengeExpired, ChallengeMismatch
from trustauthority.verification.challenge import (
    Purpose,
    check,
    claimed_purpose,
    encode,
    qualifying_data,
)

KEYS = {7: b"k" * 32, 8: b"l" * 32}
NOW = 1_800_000_000_000
TTL = 60_000
RANDOM = bytes(range(16))


def issue(**changes):
    """A token for the standing cluster, host and purpose."""
    fields = {
        "kid": 7,
        "key": KEYS[7],
        "cluster": "east",
        "purpose": Purpose.ATTEST,
        "host": "h-1",
        "issued_at_ms": NOW,
        "random": RANDOM,
    }
    return encode(**fields | changes)


def accept(token, **changes):
    """Check with the standing expectation."""
    fields = {
        "keys": KEYS,
        "cluster": "east",
        "purpose": Purpose.ATTEST,
        "host": "h-1",
        "now_ms": NOW,
        "ttl_ms": TTL,
    }
    return check(token, **fields | changes)


class TestCheck:
    @pytest.mark.parametrize("purpose", list(Purpose))
    def test_own_fresh_token(self, purpose):
        """A token of ours is accepted and named by its hash, for single use in the store."""
        token = issue(purpose=purpose)
        challenge = accept(token, purpose=purpose)

        assert challenge.challenge_id == hashlib.sha256(token).digest()
        assert (challenge.purpose, challenge.issued_at_ms) == (purpose, NOW)

    @pytest.mark.parametrize("age", [0, 1, TTL - 1_000, TTL])
    def test_within_its_life(self, age):
        """A challenge lives for exactly its time to live (N08)."""
        assert accept(issue(), now_ms=NOW + age).issued_at_ms == NOW

    @pytest.mark.parametrize("age", [TTL + 1, TTL + 1_000, 10 * TTL])
    def test_expired(self, age):
        """One millisecond later it is expired (N08)."""
        with pytest.raises(ChallengeExpired, match="older"):
            accept(issue(), now_ms=NOW + age)

    def test_slightly_ahead(self):
        """Another node's clock may be up to two seconds ahead (N08)."""
        assert accept(issue(), now_ms=NOW - 2_000).issued_at_ms == NOW

    def test_from_the_future(self):
        """More than two seconds ahead is refused (N08)."""
        with pytest.raises(ChallengeExpired, match="future"):
            accept(issue(), now_ms=NOW - 2_001)

    def test_every_flipped_bit(self):
        """No bit of a token can be changed (N09)."""
        for bit in range(8 * len(issue())):
            flipped = bytearray(issue())
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises((ChallengeMismatch, ChallengeExpired)):
                accept(bytes(flipped))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"purpose": Purpose.RELEASE}, "purpose"),
            ({"purpose": Purpose.ENROL}, "purpose"),
            ({"cluster": "west"}, "cluster"),
            ({"host": "h-2"}, "host"),
        ],
    )
    def test_for_something_else(self, change, message):
        """A challenge serves one purpose, cluster and host only (N10)."""
        with pytest.raises(ChallengeMismatch, match=message):
            accept(issue(), **change)

    def test_retired_key(self):
        """A challenge of a key that is gone means: ask for a new one."""
        with pytest.raises(ChallengeExpired, match="no longer"):
            accept(issue(), keys={8: KEYS[8]})

    def test_key_under_another_id(self):
        """A key id does not choose which key proves the token."""
        with pytest.raises(ChallengeMismatch, match="not made"):
            accept(issue(key=KEYS[8]))

    @pytest.mark.parametrize("size", [0, 1, 93, 94, 125, 127, 4096])
    def test_other_length(self, size):
        """Only one length is a token."""
        with pytest.raises(ChallengeMismatch, match="not a token"):
            accept((issue() * 40)[:size])

    @given(st.binary(max_size=200) | st.binary(min_size=126, max_size=126))
    def test_any_bytes(self, token):
        """Whatever bytes come, they are refused with one of two reasons."""
        with pytest.raises((ChallengeMismatch, ChallengeExpired)):
            accept(token)

    def test_random_makes_it_unique(self):
        """Two challenges of one millisecond differ."""
        first, second = accept(issue()), accept(issue(random=bytes(16)))
        assert first.challenge_id != second.challenge_id


class TestEncode:
    @pytest.mark.parametrize("size", [0, 15, 17])
    def test_random_has_sixteen_bytes(self, size):
        """A caller that forgot randomness is told, not served."""
        with pytest.raises(ValueError, match="16 random bytes"):
            issue(random=bytes(size))

    def test_short_key(self):
        """No challenge is made with a key that can be guessed."""
        with pytest.raises(ValueError, match="at least 32"):
            issue(key=b"k" * 31)

    def test_layout(self):
        """The layout in the module docstring is the layout."""
        token = issue()
        assert len(token) == 126
        assert token[:14] == b"\x01" + b"\0\0\0\x07" + b"\x02" + NOW.to_bytes(8, "big")
        assert token[14:46] == hashlib.sha256(b"east").digest()
        assert token[46:78] == hashlib.sha256(b"h-1").digest()
        assert token[78:94] == RANDOM
        mac = hmac.digest(KEYS[7], b"trustauthority/challenge/v1\0" + token[:94], "sha256")
        assert token[94:] == mac

    def test_a_token_of_another_version_is_none(self):
        """What another version would mean nobody here knows, though the key is ours (rule 65)."""
        body = b"\x02" + issue()[1:94]
        mac = hmac.digest(KEYS[7], b"trustauthority/challenge/v1\0" + body, "sha256")
        with pytest.raises(ChallengeMismatch, match="another version"):
            accept(body + mac)

    def test_numbers_of_purposes(self):
        """A number never changes its meaning: a token of before an update is for what it was for."""
        numbers = {purpose: issue(purpose=purpose)[5] for purpose in Purpose}
        assert numbers == {"enrol": 1, "attest": 2, "release": 3, "attest-next": 4}
        for purpose in Purpose:
            assert claimed_purpose(issue(purpose=purpose)) is purpose
        assert claimed_purpose(issue()[:-1]) is None
        assert claimed_purpose(issue()[:5] + b"\x05" + issue()[6:]) is None


class TestQualifyingData:
    NAME = b"\0\x0b" + b"t" * 32

    def test_is_the_documented_hash(self):
        """The agent computes the same bytes from the documentation alone."""
        parts = (b"trustauthority/qualifying-data/v1", b"challenge", self.NAME, b"attest")
        joined = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
        assert (
            qualifying_data(b"challenge", self.NAME, Purpose.ATTEST)
            == hashlib.sha256(joined).digest()
        )

    def test_binds_every_input(self):
        """Another challenge, TLS key or purpose gives other data: no relay (N11)."""
        answers = {
            qualifying_data(b"challenge", self.NAME, Purpose.ATTEST),
            qualifying_data(b"challengf", self.NAME, Purpose.ATTEST),
            qualifying_data(b"challenge", b"\0\x0b" + b"u" * 32, Purpose.ATTEST),
            qualifying_data(b"challenge", self.NAME, Purpose.RELEASE),
        }
        assert len(answers) == 4

    @given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 40))
    def test_no_two_splits_agree(self, challenge, name, cut):
        """Moving bytes from one field to the next changes the data."""
        joined = challenge + name
        other = (joined[:cut], joined[cut:])
        same = qualifying_data(*other, Purpose.ATTEST) == qualifying_data(
            challenge, name, Purpose.ATTEST
        )
        assert same == (other == (challenge, name))
