"""Check a report token offline: its signature, who issued it, for whom, and for how long.

Trusts the key set and the expectations of the caller; nothing in the token is believed before its
signature holds under one of those keys. The algorithm is fixed by the key, never by the token (N68).
Source: RFC 7515, RFC 7519, RFC 8725 (best current practices).
"""

import base64
import binascii
import json
from datetime import datetime
from typing import Any

from trustauthority.errors import ConfigurationInvalid, ReportRejected

ALGORITHMS = {"P-256": "ES256", "P-384": "ES384"}
"""The one algorithm of each curve; everything else is refused, symmetric ones and «none» first."""
MAX_TOKEN_SIZE = 65_536
"""Bytes; a report is a few thousand."""


def read_keys(content: bytes) -> dict[str, dict[str, Any]]:
    """Public signing keys of a JSON Web Key Set by key id. Raises ConfigurationInvalid."""
    try:
        document = _json(content)
        keys = {str(key["kid"]): key for key in document["keys"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationInvalid("this is no JSON Web Key Set whose keys have ids") from error
    if not keys:
        raise ConfigurationInvalid("the JSON Web Key Set holds no key")
    for kid, key in keys.items():
        if key.get("kty") != "EC" or key.get("crv") not in ALGORITHMS or "d" in key:
            raise ConfigurationInvalid(
                f"key {kid} is not a public key on P-256 or P-384", keyId=kid
            )
    return keys


def check_token(
    token: str,
    *,
    keys: dict[str, dict[str, Any]],
    audience: str,
    issuer: str,
    now: datetime,
) -> dict[str, Any]:
    """Return the claims of a token that holds. Raises ReportRejected saying why it does not."""
    # (1) three parts of canonical base64url, of a size that is worth reading
    if len(token) > MAX_TOKEN_SIZE or token.count(".") != 2:
        raise ReportRejected("not a compact JWS of three parts")
    # (2) a protected header that names a key we were given, and that key's own algorithm
    header = _part(token.split(".", maxsplit=1)[0], "header")
    key = keys.get(str(header.get("kid", "")))
    if key is None:
        raise ReportRejected("signed with a key that is not in the key set")
    algorithm = ALGORITHMS[str(key["crv"])]
    if header.get("alg") != algorithm:
        raise ReportRejected(f"claims an algorithm that is not {algorithm}, the one of its key")
    if "crit" in header or "jwk" in header or "jku" in header or "x5c" in header:
        raise ReportRejected("its header asks for an extension or brings its own key")
    # (3) the signature
    payload = _verified_payload(token, key, algorithm)
    # (4) the claims, each exactly once
    claims = _claims(payload)
    _require_time(claims, now)
    if claims.get("iss") != issuer:
        raise ReportRejected("issued by another authority", issuer=str(claims.get("iss", "")))
    audiences = claims.get("aud")
    meant_for = audiences if isinstance(audiences, list) else [audiences]
    if not audience or audience not in meant_for:
        raise ReportRejected("meant for somebody else", audience=json.dumps(audiences))
    return claims


def unverified_claims(token: str) -> dict[str, Any]:
    """The claims as they stand in the token, for display only. Raises ReportRejected."""
    if len(token) > MAX_TOKEN_SIZE or token.count(".") != 2:
        raise ReportRejected("not a compact JWS of three parts")
    return _part(token.split(".")[1], "payload")


def _verified_payload(token: str, key: dict[str, Any], algorithm: str) -> bytes:
    from joserfc import jws
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey

    try:
        opened = jws.deserialize_compact(
            token.encode("ascii"), ECKey.import_key(key), algorithms=[algorithm]
        )
    except (JoseError, ValueError, UnicodeEncodeError) as error:
        raise ReportRejected("the signature is wrong for the key it names") from error
    return opened.payload


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = _json(payload)
    except ValueError as error:
        raise ReportRejected(f"the payload is not one JSON object: {error}") from error
    missing = [name for name in ("iss", "aud", "iat", "exp") if name not in claims]
    if missing:
        raise ReportRejected(f"lacks {', '.join(missing)}")
    return claims


def _require_time(claims: dict[str, Any], now: datetime) -> None:
    at = now.timestamp()
    for name in ("exp", "iat", *(("nbf",) if "nbf" in claims else ())):
        value = claims[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ReportRejected(f"{name} is not a time")
    if at >= claims["exp"]:
        raise ReportRejected("expired", expired=claims["exp"])
    if max(claims["iat"], claims.get("nbf", 0)) > at + MAX_SKEW_S:
        raise ReportRejected("from the future: one of the clocks is wrong", issued=claims["iat"])


MAX_SKEW_S = 60
"""Seconds by which the issuer's clock may be ahead of ours; none for the expiry."""


def _part(text: str, what: str) -> dict[str, Any]:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return _json(raw)
    except (binascii.Error, ValueError) as error:
        raise ReportRejected(f"the {what} of the token can't be read") from error


def _json(content: bytes) -> dict[str, Any]:
    """One JSON object without a duplicate name anywhere. Raises ValueError."""
    try:
        value = json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - to the caller all is one: unreadable
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
