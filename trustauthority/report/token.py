"""Signing and checking of compact JWS tokens: one type each, an allow-list of algorithms.

What it trusts: the keys it is given. What it guarantees: a token is used only as what its ``typ``
says, only before its end, only by its audience (N68, N92). JOSE itself is joserfc's.
Spec: RFC 7515, RFC 7519, RFC 8725 (best practices).
"""

import json
from collections.abc import Mapping
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from trustauthority.errors import ReportRejected
from trustauthority.model.identifiers import ClusterId, HostId
from trustauthority.model.report import ALGORITHMS, REPORT_TYPE, Report

_REGISTRY = jws.JWSRegistry(algorithms=list(ALGORITHMS))
MAX_TOKEN_BYTES = 64 * 1024
FAR = 253_402_300_799
"""31 December 9999 in seconds: later is no time, and neither is NaN."""


def sign_token(claims: Mapping[str, Any], *, token_type: str, key: ECKey) -> str:
    """Sign claims as a compact JWS with a P-256 or P-384 key."""
    algorithm = "ES256" if key.curve_name == "P-256" else "ES384"
    header = {"alg": algorithm, "typ": token_type, "kid": key.thumbprint()}
    payload = json.dumps(claims, sort_keys=True, separators=(",", ":"))
    return jws.serialize_compact(header, payload, key, registry=_REGISTRY)


def read_token(token: str, *, token_type: str, keys: KeySet) -> dict[str, Any]:
    """Check the signature and type of a token and return its claims.

    Raises:
        ReportRejected: not signed by a known key with an allowed algorithm, or of another type.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise ReportRejected("the token is too long")
    try:
        signed = jws.deserialize_compact(token, keys, registry=_REGISTRY)
        text = signed.payload.decode("utf-8")
        header, claims = signed.headers(), json.loads(text, object_pairs_hook=_unique)
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ReportRejected(f"the token does not verify: {error}") from error
    if header.get("typ") != token_type:
        raise ReportRejected(f"the token is a {header.get('typ')!r}, not a {token_type}")
    if "kid" not in header:
        raise ReportRejected("the token does not say which key signed it")
    if not isinstance(claims, dict):
        raise ReportRejected("the token's claims are not an object")
    return claims


def check_report(token: str, *, keys: KeySet, issuer: str, audience: str, now_ms: int) -> Report:
    """Check a report token for a relying party.

    Raises:
        ReportRejected: unsigned, expired, of another type, issuer or audience; or a claim is missing.
    """
    claims = read_token(token, token_type=REPORT_TYPE, keys=keys)
    missing = [n for n in ("iss", "aud", "sub", "iat", "exp", "jti", "ta") if n not in claims]
    if missing:
        raise ReportRejected(f"the report lacks {', '.join(missing)}")
    if claims["iss"] != issuer:
        raise ReportRejected("the report is by another issuer")
    if claims["aud"] != audience:
        raise ReportRejected("the report is for another audience")
    issued_ms, expires_ms = (_milliseconds(claims[name], name) for name in ("iat", "exp"))
    begins_ms = max(issued_ms, _milliseconds(claims.get("nbf", claims["iat"]), "nbf"))
    if not begins_ms - 2_000 <= now_ms < expires_ms:
        raise ReportRejected("the report expired, or is from the future")
    facts = claims["ta"]
    if not isinstance(facts, dict) or facts.get("standing") not in ("passed", "failed"):
        raise ReportRejected("the report states no standing")
    return Report(
        host_id=HostId(str(claims["sub"])),
        cluster=ClusterId(str(facts.get("cluster", ""))),
        passed=facts["standing"] == "passed",
        verdict_id=str(claims["jti"]),
        issued_at_ms=issued_ms,
        expires_at_ms=expires_ms,
        claims=claims,
        token=token,
    )


def _milliseconds(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= FAR:
        raise ReportRejected(f"claim {name} is no time")
    return int(value * 1000)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse duplicate claims: two readers would not agree on them (N68)."""
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a claim stands twice")
    return dict(pairs)
