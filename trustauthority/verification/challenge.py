"""Challenges: stateless tokens that make evidence fresh and bind it to one host and purpose.

Stage: verification. Trusts on entry: the HMAC keys, the time and the random bytes it is given.
Guarantees on exit of ``check``: this authority issued the token, for this cluster, host and purpose,
no longer ago than its time to live. Does not know whether a token was used: that is a unique insert
in the transaction that records the verdict.
Source: RFC 9334, section 10.2 (nonces); RFC 2104.

Token, 126 bytes, integers big-endian::

    version 1 | kid 4 | purpose 1 | issued_at_ms 8 | SHA-256(cluster) 32 | SHA-256(host) 32 |
    random 16 | HMAC-SHA256(key, "trustauthority/challenge/v1" NUL, all of the before) 32
"""

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from trustauthority.errors import ChallengeExpired, ChallengeMismatch

RANDOM_SIZE = 16
"""Bytes of randomness in a challenge."""
MIN_KEY_SIZE = 32
"""Bytes of an HMAC key."""
FUTURE_TOLERANCE_MS = 2_000
"""How far ahead the clock of the node that issued a challenge may be (N08)."""

_VERSION = 1
_MAC_SIZE = 32
_PURPOSE_OFFSET = 5
_BODY = struct.Struct(">BIBQ32s32s16s")
_TOKEN_SIZE = _BODY.size + _MAC_SIZE
_MAC_LABEL = b"trustauthority/challenge/v1\0"
_QUALIFYING_LABEL = b"trustauthority/qualifying-data/v1"


class Purpose(StrEnum):
    """What a challenge may be used for."""

    ENROL = "enrol"
    ATTEST = "attest"
    ATTEST_NEXT = "attest-next"
    """Rides in the answer to evidence and lives until the next attestation is due."""
    RELEASE = "release"


_PURPOSE_NUMBERS = {
    Purpose.ENROL: 1,
    Purpose.ATTEST: 2,
    Purpose.RELEASE: 3,
    Purpose.ATTEST_NEXT: 4,
}
_PURPOSES = {number: purpose for purpose, number in _PURPOSE_NUMBERS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A challenge that was checked. Its id is what must be unique among the used ones."""

    challenge_id: bytes
    """SHA-256 of the token."""
    purpose: Purpose
    issued_at_ms: int
    """Milliseconds since the epoch, by the clock of the issuer."""


def encode(
    *,
    kid: int,
    key: bytes,
    cluster: str,
    purpose: Purpose,
    host: str,
    issued_at_ms: int,
    random: bytes,
) -> bytes:
    """Issue a token. ``random`` is 16 fresh bytes; ``kid`` names ``key`` among the live ones.

    Raises ValueError for a short key or the wrong amount of randomness: mistakes of the caller.
    """
    if len(random) != RANDOM_SIZE or len(key) < MIN_KEY_SIZE:
        raise ValueError("a challenge takes 16 random bytes and a key of at least 32")
    body = _BODY.pack(
        _VERSION,
        kid,
        _PURPOSE_NUMBERS[purpose],
        issued_at_ms,
        _text_hash(cluster),
        _text_hash(host),
        random,
    )
    return body + _mac(key, body)


def check(
    token: bytes,
    *,
    keys: Mapping[int, bytes],
    cluster: str,
    purpose: Purpose,
    host: str,
    now_ms: int,
    ttl_ms: int,
) -> Challenge:
    """Accept a token that one of ``keys`` made for this cluster, purpose and host, in time.

    Raises:
        ChallengeMismatch: not ours, changed, or for something or somebody else.
        ChallengeExpired: of a retired key, too old, or more than 2 s in the future.
    """
    # (1) The form, and the key it names.
    if len(token) != _TOKEN_SIZE:
        raise ChallengeMismatch("the challenge is not a token of this authority")
    body, claimed_mac = token[: _BODY.size], token[_BODY.size :]
    version, kid, number, issued_at_ms, cluster_hash, host_hash, _random = _BODY.unpack(body)
    if version != _VERSION:
        raise ChallengeMismatch("the challenge has another version")
    key = keys.get(kid)
    if key is None:
        raise ChallengeExpired("the challenge was made with a key that is no longer in use")
    # (2) We made it, as it is. Nothing in it is believed before this line.
    if not hmac.compare_digest(_mac(key, body), claimed_mac):
        raise ChallengeMismatch("the challenge was not made by this authority")
    # (3) It is for this cluster, purpose and host.
    if number != _PURPOSE_NUMBERS[purpose]:
        raise ChallengeMismatch(f"the challenge is not for purpose {purpose}")
    if cluster_hash != _text_hash(cluster):
        raise ChallengeMismatch("the challenge is for another cluster")
    if host_hash != _text_hash(host):
        raise ChallengeMismatch("the challenge is for another host")
    # (4) It is fresh.
    if issued_at_ms > now_ms + FUTURE_TOLERANCE_MS:
        raise ChallengeExpired("the challenge comes from the future")
    if now_ms - issued_at_ms > ttl_ms:
        raise ChallengeExpired(f"the challenge is older than {ttl_ms} ms")
    return Challenge(
        challenge_id=hashlib.sha256(token).digest(),
        purpose=_PURPOSES[number],
        issued_at_ms=issued_at_ms,
    )


def claimed_purpose(token: bytes) -> Purpose | None:
    """What a token says that it is for. To be believed only after ``check`` for that purpose."""
    return _PURPOSES.get(token[_PURPOSE_OFFSET]) if len(token) == _TOKEN_SIZE else None


def qualifying_data(challenge: bytes, tls_key_name: bytes, purpose: str) -> bytes:
    """What the TPM must put into a quote: 32 bytes that bind challenge, TLS key and purpose (N11).

    SHA-256 over ``trustauthority/qualifying-data/v1``, the token, the TPM name of the TLS identity
    and the purpose in ASCII, each after its length as two big-endian bytes.
    """
    fields = (_QUALIFYING_LABEL, challenge, tls_key_name, purpose.encode("ascii"))
    joined = b"".join(len(field).to_bytes(2, "big") + field for field in fields)
    return hashlib.sha256(joined).digest()


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, _MAC_LABEL + body, "sha256")


def _text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()
