"""Signed tokens that somebody else made: reports and verdict seals take none of them (N68, N92)."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc.jwk import ECKey, KeySet

from trustauthority.errors import ReportRejected, TrustAuthorityError
from trustauthority.model.report import REPORT_TYPE, SEAL_TYPE
from trustauthority.report.seal import open_seal
from trustauthority.report.token import check_report, sign_token

NOW_MS = 1_800_000_000_000
NOW = NOW_MS // 1000
ISSUER, AUDIENCE = "test.trustauthority.local", "trustauthority"
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "h-1",
    "iat": NOW - 10,
    "exp": NOW + 300,
    "jti": "v-1",
    "ta": {"standing": "passed", "cluster": "lab"},
}


def key(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(number, ec.SECP256R1())


def jwk(private: ec.EllipticCurvePrivateKey) -> ECKey:
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return ECKey.import_key(pem)


OURS, THEIRS = key(4711), key(815)
PUBLIC = ECKey.import_key(
    OURS.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
)
KEYS = KeySet([PUBLIC])
KID = jwk(OURS).thumbprint()


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def encoded(value: Any) -> str:
    return b64(value if isinstance(value, bytes) else json.dumps(value).encode())


def signature(private: ec.EllipticCurvePrivateKey, text: str) -> bytes:
    r, s = decode_dss_signature(private.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def forge(
    header: Any = None,
    claims: Any = None,
    *,
    private: ec.EllipticCurvePrivateKey = OURS,
    sign: Callable[[str], bytes] | None = None,
    **changes: Any,
) -> str:
    """A token with any header and claims; signed with our own key unless told otherwise."""
    if header is None:
        header = {"alg": "ES256", "typ": REPORT_TYPE, "kid": KID} | changes
    text = f"{encoded(header)}.{encoded(CLAIMS if claims is None else claims)}"
    return f"{text}.{b64(sign(text) if sign else signature(private, text))}"


def mac(secret: bytes) -> Callable[[str], bytes]:
    def sign(text: str) -> bytes:
        made = hmac.HMAC(secret, hashes.SHA256())
        made.update(text.encode())
        return made.finalize()

    return sign


def check(token: str, now_ms: int = NOW_MS) -> Any:
    return check_report(token, keys=KEYS, issuer=ISSUER, audience=AUDIENCE, now_ms=now_ms)


PEM = PUBLIC.as_pem(private=False)
FORGED: dict[str, Callable[[], str]] = {
    "alg none": lambda: forge(alg="none", sign=lambda _: b""),
    "alg None": lambda: forge(alg="None", sign=lambda _: b""),
    "alg none, signed": lambda: forge(alg="none"),
    "no alg": lambda: forge({"typ": REPORT_TYPE, "kid": KID}),
    "alg is a list": lambda: forge(alg=["ES256"]),
    "HS256 with the public PEM": lambda: forge(alg="HS256", sign=mac(PEM)),
    "HS256 with the public JWK": lambda: forge(
        alg="HS256", sign=mac(json.dumps(PUBLIC.as_dict(private=False)).encode())
    ),
    "HS256 with nothing": lambda: forge(alg="HS256", sign=mac(b"\0")),
    "RS256 over an EC key": lambda: forge(alg="RS256"),
    "ES512 over a P-256 key": lambda: forge(alg="ES512"),
    "ES384 over a P-256 key": lambda: forge(alg="ES384"),
    "another key under our kid": lambda: forge(private=THEIRS),
    "another key under its kid": lambda: forge(private=THEIRS, kid=jwk(THEIRS).thumbprint()),
    "another key without a kid": lambda: forge(
        {"alg": "ES256", "typ": REPORT_TYPE}, private=THEIRS
    ),
    "kid is a path": lambda: forge(private=THEIRS, kid="../../../../dev/null"),
    "kid is SQL": lambda: forge(private=THEIRS, kid="x' UNION SELECT 'key"),
    "kid is a number": lambda: forge(kid=1),
    "kid is null": lambda: forge(kid=None),
    "no kid": lambda: forge({"alg": "ES256", "typ": REPORT_TYPE}),
    "its own key in the header": lambda: forge(
        {
            "alg": "ES256",
            "typ": REPORT_TYPE,
            "kid": KID,
            "jwk": jwk(THEIRS).as_dict(private=False),
        },
        private=THEIRS,
    ),
    "jku": lambda: forge(private=THEIRS, jku="https://evil.example/keys"),
    "x5u": lambda: forge(private=THEIRS, x5u="https://evil.example/cert"),
    "an unknown critical header": lambda: forge(crit=["exp2"], exp2=1),
    "payload not encoded": lambda: forge(crit=["b64"], b64=False),
    "no typ": lambda: forge({"alg": "ES256", "kid": KID}),
    "typ JWT": lambda: forge(typ="JWT"),
    "typ in capitals": lambda: forge(typ=REPORT_TYPE.upper()),
    "a seal": lambda: forge(typ=SEAL_TYPE),
    "DER signature": lambda: forge(sign=lambda t: OURS.sign(t.encode(), ec.ECDSA(hashes.SHA256()))),
    "a byte less of signature": lambda: forge(sign=lambda t: signature(OURS, t)[:-1]),
    "a byte more of signature": lambda: forge(sign=lambda t: signature(OURS, t) + b"\0"),
    "signature of zeros": lambda: forge(sign=lambda _: bytes(64)),
    "no signature": lambda: forge(sign=lambda _: b""),
    "two parts": lambda: forge().rpartition(".")[0],
    "four parts": lambda: forge() + ".e30",
    "an empty fourth part": lambda: forge() + ".",
    "no header": lambda: "." + forge().partition(".")[2],
    "no header and no dot": lambda: forge().partition(".")[2],
    "no payload": lambda: "..".join(forge().split(".")[::2]),
    "no payload and no dot": lambda: ".".join(forge().split(".")[::2]),
    "payload alone": lambda: forge().split(".")[1],
    "payload alone between dots": lambda: f".{forge().split('.')[1]}.",
    "JSON serialisation": lambda: json.dumps({"payload": encoded(CLAIMS), "signatures": []}),
    "a space behind": lambda: forge() + " ",
    "a newline within": lambda: forge().replace(".", ".\n", 1),
    "other claims under the signature": lambda: (
        forge().rpartition(".")[0] + "." + forge(claims={}).rpartition(".")[2]
    ),
    "nothing": str,
    "dots": lambda: "." * 2,
    "not ASCII": lambda: "ж.ж.ж",
    "65 KiB": lambda: forge(claims=CLAIMS | {"long": "x" * 66_000}),
    "a deep header": lambda: forge(b'{"alg":"ES256","a":' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
    "deep claims": lambda: forge(claims=b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
    "header is a list": lambda: forge([1]),
    "header is no JSON": lambda: forge(b"{"),
    "claims are no JSON": lambda: forge(claims=b"{"),
    "claims are a list": lambda: forge(claims=["iss"]),
    "claims are UTF-16": lambda: forge(claims=json.dumps(CLAIMS).encode("utf-16")),
    "a claim twice": lambda: forge(claims=json.dumps(CLAIMS)[:-1].encode() + b',"sub":"h-2"}'),
    "a claim twice within": lambda: forge(
        claims=json.dumps(CLAIMS).replace('"cluster"', '"standing": "passed", "cluster"').encode()
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_token_is_no_report(what):
    """N68: none, HS256 under the public key, foreign keys and headers, malformed parts: refused."""
    with pytest.raises(ReportRejected):
        check(FORGED[what]())


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "iat", "exp", "jti", "ta"])
def test_a_report_without_a_claim(name):
    """N68: every claim that a decision rests on is needed."""
    with pytest.raises(ReportRejected, match=name):
        check(forge(claims={key: value for key, value in CLAIMS.items() if key != name}))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "other"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"aud": "vault"},
        {"aud": [AUDIENCE, "vault"]},
        {"aud": {}},
        {"exp": NOW},
        {"exp": NOW - 1},
        {"exp": -1},
        {"exp": True},
        {"exp": str(NOW + 300)},
        {"exp": None},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": 10**400},
        {"iat": NOW + 3},
        {"iat": "now"},
        {"iat": float("-inf")},
        {"iat": float("nan")},
        {"nbf": NOW + 60},
        {"ta": None},
        {"ta": []},
        {"ta": {"standing": "PASSED"}},
        {"ta": {"standing": ["passed"]}},
        {"ta": {}},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_report_that_we_signed_for_something_else(changes):
    """N68, N92: another issuer, audience or time; times that are none; no standing."""
    with pytest.raises(ReportRejected):
        check(forge(claims=CLAIMS | changes))


def test_a_report_of_ours_is_accepted_until_its_end():
    """N08, S13: to the millisecond, and a clock that lags two seconds does no harm."""
    assert check(forge()).passed
    assert check(forge(), (NOW + 300) * 1000 - 1).host_id == "h-1"
    assert check(forge(claims=CLAIMS | {"iat": NOW + 2})).verdict_id == "v-1"
    for late in ((NOW + 300) * 1000, (NOW + 301) * 1000):
        with pytest.raises(ReportRejected, match="expired"):
            check(forge(), late)


def test_a_failed_report_says_so():
    """N92: it verifies, and its holder is not trusted by it."""
    assert not check(forge(claims=CLAIMS | {"ta": {"standing": "failed", "cluster": "lab"}})).passed


@pytest.mark.parametrize("what", [name for name in FORGED if name != "a seal"])
def test_a_forged_token_is_no_seal(what):
    """N68: what a release rests on takes none of them either."""
    with pytest.raises(TrustAuthorityError):
        open_seal(FORGED[what](), keys=KEYS, host="h-1", verdict_id="v-1")


def test_a_report_is_no_seal():
    """N92: a genuine report does not release a key, whatever it says."""
    with pytest.raises(TrustAuthorityError):
        open_seal(forge(), keys=KEYS, host="h-1", verdict_id="v-1")


@pytest.mark.parametrize(
    "claims", [{}, CLAIMS, {"verdict_id": "v-1"}, {"passed": True, "host": "h-1"}], ids=str
)
def test_a_seal_that_lacks_something(claims):
    """S12: signed by us, of the right type, but not a whole seal: refused in terms of ours."""
    token = sign_token(claims, token_type=SEAL_TYPE, key=jwk(OURS))
    with pytest.raises(TrustAuthorityError):
        open_seal(token, keys=KEYS, host="h-1", verdict_id="v-1")


def test_every_bit_of_a_token_counts():
    """N68: no changed character of header, claims or signature verifies."""
    good = forge()
    for position in range(0, len(good), 3):
        if good[position] == ".":
            continue
        swapped = "B" if good[position] == "A" else "A"
        changed = good[:position] + swapped + good[position + 1 :]
        with pytest.raises(ReportRejected):
            check(changed)
