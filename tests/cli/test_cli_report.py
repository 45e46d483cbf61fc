"""ta report: what a report says, and that no false one passes offline (N68)."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from fakes.fake_authority import FakeAuthority
from support.admin_messages import PASSED, at, verdict

from trustauthority.cli.exit import ExitCode
from trustauthority.v1 import admin_pb2 as admin

KEY = ec.derive_private_key(0x1234567, ec.SECP256R1())
BIG_KEY = ec.derive_private_key(0x7654321, ec.SECP384R1())
CLAIMS = {
    "iss": "https://ta.example",
    "aud": ["vault", "console"],
    "sub": "h-esx-a01",
    "iat": int(at("14:00:00").timestamp()),
    "exp": int(at("15:00:00").timestamp()),
}
HEADER = {"alg": "ES256", "kid": "k1", "typ": "JWT"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwk(key: ec.EllipticCurvePrivateKey, kid: str) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    size = (key.key_size + 7) // 8
    return {
        "kty": "EC",
        "crv": f"P-{key.key_size}",
        "kid": kid,
        "x": b64(numbers.x.to_bytes(size, "big")),
        "y": b64(numbers.y.to_bytes(size, "big")),
    }


JWKS = {"keys": [jwk(KEY, "k1"), jwk(BIG_KEY, "k2")]}


def sign(claims: Any = CLAIMS, header: Any = HEADER, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    texts = [part if isinstance(part, str) else json.dumps(part) for part in (header, claims)]
    signed = ".".join(b64(text.encode()) for text in texts)
    digest = hashes.SHA256() if key.key_size == 256 else hashes.SHA384()
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(digest)))
    size = key.key_size // 8
    return f"{signed}.{b64(r.to_bytes(size, 'big') + s.to_bytes(size, 'big'))}"


def verify(ta, token: str, *more: str, jwks: Any = JWKS, audience: str = "vault"):
    (ta.home / "t.jwt").write_text(token)
    (ta.home / "keys.json").write_text(jwks if isinstance(jwks, str) else json.dumps(jwks))
    ta.contexts.unlink(missing_ok=True)  # offline: no context, no authority
    return ta(
        *("report", "verify", str(ta.home / "t.jwt"), "--keys", str(ta.home / "keys.json")),
        *("--issuer", "https://ta.example", "--audience", audience, *more),
    )


def test_a_good_report_holds_offline(ta) -> None:
    """Design 10: verify needs a token, the key set, and no authority."""
    result = verify(ta, sign() + "\n")
    assert result.code is ExitCode.YES
    assert result.out.startswith("✔ the report holds\n  iss  https://ta.example\n")
    assert "exp  2026-11-20 15:00:00Z (57m left)" in result.out
    assert json.loads(verify(ta, sign(), "-o", "json").out) == CLAIMS
    assert verify(ta, sign(), "-o", "name").out == "h-esx-a01\n"
    assert verify(ta, sign(header=HEADER | {"alg": "ES384", "kid": "k2"}, key=BIG_KEY)).code == 0


def with_algorithm_of_the_public_key() -> str:
    """HS256 keyed with the bytes of the public key, the classic confusion."""
    public = KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = ".".join(
        b64(json.dumps(part).encode()) for part in (HEADER | {"alg": "HS256"}, CLAIMS)
    )
    mac = hmac.HMAC(public, hashes.SHA256())
    mac.update(signed.encode())
    return f"{signed}.{b64(mac.finalize())}"


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


def unsigned(alg: str) -> str:
    head, body = (b64(json.dumps(part).encode()) for part in (HEADER | {"alg": alg}, CLAIMS))
    return f"{head}.{body}."


DOUBLE = '{"aud": "evil", ' + json.dumps(CLAIMS)[1:]
BAD = {
    "none": unsigned("none"),
    "None": unsigned("NONE"),
    "empty_signature": unsigned("ES256"),
    "hs256_with_public_key": with_algorithm_of_the_public_key(),
    "alg_of_other_curve": sign(header=HEADER | {"alg": "ES384"}),
    "rs256": sign(header=HEADER | {"alg": "RS256"}),
    "other_key_same_kid": sign(key=ec.derive_private_key(99, ec.SECP256R1())),
    "kid_unknown": sign(header=HEADER | {"kid": "k9"}),
    "kid_traversal": sign(header=HEADER | {"kid": "../../etc/passwd"}),
    "kid_missing": sign(header={"alg": "ES256"}),
    "kid_of_other_key": sign(header=HEADER | {"kid": "k2"}),
    "own_key_in_header": sign(header=HEADER | {"jwk": jwk(KEY, "k1")}),
    "jku": sign(header=HEADER | {"jku": "https://evil.example"}),
    "crit": sign(header=HEADER | {"crit": ["b64"], "b64": False}),
    "exp_missing": sign(without("exp")),
    "aud_missing": sign(without("aud")),
    "iss_missing": sign(without("iss")),
    "iat_missing": sign(without("iat")),
    "expired": sign(CLAIMS | {"exp": int(at("14:02:11").timestamp())}),
    "from_the_future": sign(CLAIMS | {"iat": int(at("14:10:00").timestamp())}),
    "not_before": sign(CLAIMS | {"nbf": int(at("14:10:00").timestamp())}),
    "exp_text": sign(CLAIMS | {"exp": "9999999999"}),
    "exp_bool": sign(CLAIMS | {"exp": True}),
    "exp_float": sign(CLAIMS | {"exp": 1e12}),
    "exp_nan": sign(json.dumps(CLAIMS).replace(str(CLAIMS["exp"]), "NaN")),
    "exp_infinity": sign(json.dumps(CLAIMS).replace(str(CLAIMS["exp"]), "Infinity")),
    "other_issuer": sign(CLAIMS | {"iss": "https://evil.example"}),
    "other_audience": sign(CLAIMS | {"aud": "somebody"}),
    "audience_prefix": sign(CLAIMS | {"aud": "vault.evil.example"}),
    "audience_object": sign(CLAIMS | {"aud": {"vault": 1}}),
    "audience_null": sign(CLAIMS | {"aud": None}),
    "claim_twice": sign(DOUBLE),
    "header_twice": sign(header='{"alg":"none","alg":"ES256","kid":"k1"}'),
    "payload_list": sign([CLAIMS]),
    "payload_deep": sign("[" * 20_000),
    "payload_no_json": sign("x"),
    "two_parts": ".".join(sign().split(".")[:2]),
    "four_parts": sign() + ".x",
    "signature_changed": sign()[:-4] + "AAAA",
    "payload_changed": sign().replace(
        sign().split(".")[1], sign(CLAIMS | {"sub": "x"}).split(".")[1]
    ),
    "not_ascii": "é" + sign(),
    "padding": sign() + "=",
    "empty": "",
    "endless": "a" * 70_000,
}


@pytest.mark.parametrize("defect", BAD)
def test_a_false_report_is_a_no(ta, defect: str) -> None:
    """N68, N92: every defect is refused with exit 1, without a stack and without data."""
    result = verify(ta, BAD[defect])
    assert result.code is ExitCode.NO
    assert "[REPORT_REJECTED]" in result.err
    assert result.out == ""


def test_an_empty_audience_is_nobody(ta) -> None:
    """N68: expecting nobody in particular is not expecting anybody."""
    assert verify(ta, sign(CLAIMS | {"aud": ""}), audience="").code is ExitCode.NO


def test_at_another_time(ta) -> None:
    """A report of yesterday can be checked as of yesterday."""
    assert verify(ta, sign(), "--at", "2026-11-20T16:00:00Z").code is ExitCode.NO
    assert verify(ta, sign(), "--at", "2026-11-20T14:30:00").code is ExitCode.YES


@pytest.mark.parametrize(
    "jwks",
    [
        "x",
        {},
        {"keys": []},
        {"keys": [{"kty": "oct", "kid": "k1", "k": "AAAA"}]},
        {"keys": [{**jwk(KEY, "k1"), "d": "AAAA"}]},
        {"keys": [{k: v for k, v in jwk(KEY, "k1").items() if k != "kid"}]},
        {"keys": [{**jwk(KEY, "k1"), "crv": "P-521"}]},
    ],
)
def test_a_key_set_with_other_keys_is_refused(ta, jwks: Any) -> None:
    """N68: symmetric and private keys, and sets without ids, are a usage error."""
    assert verify(ta, sign(), jwks=jwks).code is ExitCode.USAGE


def test_issuer_and_audience_must_be_said(ta) -> None:
    """N68: there is no default that would accept what is meant for others."""
    (ta.home / "t").write_text(sign())
    assert ta("report", "verify", f"{ta.home}/t", "--keys", f"{ta.home}/t").code is ExitCode.USAGE


def test_show_tells_claims_and_verdict(ta, authority: FakeAuthority) -> None:
    """A person sees what other systems will read; --raw is for those systems."""
    token = sign()
    reply = admin.GetReportResponse(report=token, verdict=verdict(PASSED))
    authority.answer("GetReport", reply)
    result = ta("report", "show", "esx-a01")
    assert result.code is ExitCode.YES
    assert "exp  2026-11-20 15:00:00Z (57m left)" in result.out
    assert "✔ quote" in result.out
    assert ta("report", "show", "esx-a01", "--raw").out == token + "\n"
    assert json.loads(ta("report", "show", "x", "-o", "json").out)["claims"] == CLAIMS


def test_keys_prints_the_key_set_as_it_is(ta, authority: FakeAuthority) -> None:
    """What is printed is what verify takes."""
    text = json.dumps(JWKS)
    authority.answer("GetReportKeys", admin.GetReportKeysResponse(jwks=text))
    assert ta("report", "keys").out == text + "\n"
    assert json.loads(ta("report", "keys", "-o", "json").out) == JWKS
