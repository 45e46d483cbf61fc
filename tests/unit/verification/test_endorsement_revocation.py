"""Revocation: CRLs from files, checked by signature, and a deny list of our own (rule 29)."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ek_certificates as make
from support.deterministic_keys import rsa_private_key

from trustauthority.codec.x509 import decode_certificate
from trustauthority.codec.x509_crl import decode_revocation_list
from trustauthority.errors import EkCertificateRevoked, EndorsementRejected, MalformedEvidence
from trustauthority.model.certificate import Certificate
from trustauthority.model.endorsement import (
    CaAnchor,
    EndorsementPolicy,
    EndorsementRule,
    Revocations,
    VerifiedEndorsement,
)
from trustauthority.verification.endorsement import NOTHING_RELAXED, verify_endorsement
from trustauthority.verification.endorsement_chain import AnchorSet, CertificatePool
from trustauthority.verification.revocation import check_taken_back

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OTHER_KEY = rsa_private_key("ekcerts/other")
GOOD = make.endorsement()
STRICT = EndorsementPolicy(require_crl=True)


def _crl(*serials: int, **options: object) -> bytes:
    """A CRL of CA 001."""
    return make.build_crl(make.ca_key(), make.CA_NAME, serials, **options)  # type: ignore[arg-type]


def _root_crl(*serials: int) -> bytes:
    return make.build_crl(make.root_key(), make.ROOT_NAME, serials)


def _verify(
    *lists: bytes,
    denied: frozenset[bytes] = frozenset(),
    policy: EndorsementPolicy = NOTHING_RELAXED,
    middle: bytes | None = None,
) -> VerifiedEndorsement:
    return verify_endorsement(
        GOOD,
        intermediates=CertificatePool([decode_certificate(middle or make.intermediate())]),
        anchors=AnchorSet([CaAnchor(certificate=decode_certificate(make.root()))]),
        now=NOW,
        policy=policy,
        revocations=Revocations(
            lists=tuple(decode_revocation_list(one) for one in lists), denied=denied
        ),
    )


def _rule_of(*lists: bytes, **options: object) -> EndorsementRule:
    with pytest.raises(EndorsementRejected) as caught:
        _verify(*lists, **options)  # type: ignore[arg-type]
    return EndorsementRule(caught.value.metadata["rule"])


def test_a_revoked_ek_names_issuer_serial_and_day() -> None:
    """Rule 29: the message says who took what back, and when."""
    with pytest.raises(EkCertificateRevoked, match="2024-06-01") as caught:
        _verify(_crl(1, 4711))
    assert caught.value.metadata["rule"] == EndorsementRule.REVOKED
    assert caught.value.metadata["issuer"] == "CN=Vector TPM EK CA 001"
    assert caught.value.metadata["serial"] == f"{4711:x}"


def test_a_revoked_ca_takes_its_eks_with_it() -> None:
    """Rule 29: the root's CRL lists CA 001."""
    with pytest.raises(EkCertificateRevoked, match="CA 001"):
        _verify(_root_crl(2))


def test_lists_of_others_say_nothing_about_this_one() -> None:
    """A serial number means something under its issuer only."""
    elsewhere = make.build_crl(make.ca_key(), make.common_name("Somebody Else"), [4711])
    same_name = _crl(4711, extensions=make.key_identifiers(None, b"\x09" * 20))
    assert _verify(_crl(1), _root_crl(4711), elsewhere, same_name)


@pytest.mark.parametrize(
    "bad",
    [
        make.build_crl(OTHER_KEY, make.CA_NAME),
        _crl(algorithm_id=make.SHA1_RSA),
        make.build_crl(make.ec_private_key(1), make.CA_NAME, algorithm_id=make.SHA256_ECDSA),
    ],
)
def test_a_list_that_its_issuer_did_not_sign_is_a_refusal(bad: bytes) -> None:
    """Rule 29: whoever can swap a CRL could otherwise hide a revocation."""
    assert _rule_of(bad) is EndorsementRule.CRL_SIGNATURE


def test_a_ca_that_may_not_sign_crls_did_not_sign_this_one() -> None:
    """RFC 5280 6.3.3 (f): cRLSign."""
    extensions = [make.basic_constraints(authority=True), make.key_usage(5)]
    middle = make.intermediate(extensions=extensions)
    assert _rule_of(_crl(), middle=middle) is EndorsementRule.CRL_SIGNATURE


def test_an_outdated_list_still_revokes() -> None:
    """What was taken back does not come back by itself."""
    with pytest.raises(EkCertificateRevoked):
        _verify(_crl(4711, next_update=b"250201000000Z"))


def test_a_required_list_must_be_there_and_in_date() -> None:
    """``require_crl``: for each issuer of the chain."""
    assert _rule_of(policy=STRICT) is EndorsementRule.CRL_MISSING
    assert _rule_of(_crl(), policy=STRICT) is EndorsementRule.CRL_MISSING
    assert _verify(_crl(), _root_crl(), policy=STRICT)
    for options in (
        {"next_update": b"250201000000Z"},
        {"next_update": None},
        {"this_update": b"270101000000Z"},
    ):
        rule = _rule_of(_crl(**options), _root_crl(), policy=STRICT)
        assert rule is EndorsementRule.CRL_OUTDATED


@pytest.mark.parametrize(
    "entry",
    [
        sha256(GOOD).digest(),
        sha256(make.public_key_info(make.ek_key())).digest(),
        sha256(make.intermediate()).digest(),
        sha256(make.public_key_info(make.ca_key())).digest(),
        sha256(make.root()).digest(),
    ],
)
def test_the_deny_list_covers_the_whole_chain(entry: bytes) -> None:
    """Rule 29: by certificate or by key, of the EK, its CA or the anchor."""
    assert _rule_of(denied=frozenset({entry})) is EndorsementRule.DENIED


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        _crl() + b"\x00",
        _crl()[:-1],
        b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n",
        _crl(extensions=[make.extension("2.5.29.28", b"\x30\x00", critical=True)]),
        _crl(extensions=[make.extension("2.5.29.27", b"\x02\x01\x01", critical=True)]),
        make.endorsement(),
    ],
)
def test_what_is_no_complete_list_is_malformed(bad: bytes) -> None:
    """Cut, padded, indirect and delta lists are never read as if they were complete."""
    with pytest.raises(MalformedEvidence):
        decode_revocation_list(bad)


def test_a_list_is_read_from_pem_too() -> None:
    """Vendors publish both."""
    import base64

    body = base64.encodebytes(_crl(7)).decode()
    pem = f"-----BEGIN X509 CRL-----\n{body}-----END X509 CRL-----\n".encode()
    assert decode_revocation_list(pem) == decode_revocation_list(_crl(7))


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, len(_crl(7)) - 1), replacement=st.binary(max_size=4))
def test_a_damaged_list_is_malformed_or_refused(position: int, replacement: bytes) -> None:
    """Issue 3: total over bytes, and a changed list never passes for the issuer's."""
    good = _crl(7)
    damaged = good[:position] + replacement + good[position + len(replacement) :]
    if damaged == good:
        return
    try:
        _verify(damaged, policy=STRICT)
    except (MalformedEvidence, EndorsementRejected) as error:
        outcome = error.reason
    else:
        outcome = "accepted"
    assert outcome != "accepted"


# --- looked at again, long after the enrolment ---------------------------------------------------

CHAIN = tuple(map(decode_certificate, (GOOD, make.intermediate(), make.root())))
EK_PUBLIC = b"TPMT_PUBLIC of the EK"


def _again(
    *lists: bytes,
    denied: bytes | None = None,
    policy: EndorsementPolicy = NOTHING_RELAXED,
    chain: tuple[Certificate, ...] = CHAIN,
    now: datetime = NOW,
) -> None:
    check_taken_back(
        chain,
        EK_PUBLIC,
        now,
        policy,
        Revocations(
            lists=tuple(decode_revocation_list(one) for one in lists),
            denied=frozenset() if denied is None else frozenset({denied}),
        ),
    )


def test_what_nobody_took_back_stays_accepted() -> None:
    """Rule 29: an EK with its chain, one without certificate, and lists of others."""
    _again()
    _again(chain=())
    _again(_crl(1), _root_crl(3), denied=sha256(b"another").digest())


@pytest.mark.parametrize(
    "entry",
    [
        sha256(EK_PUBLIC).digest(),
        sha256(GOOD).digest(),
        sha256(make.public_key_info(make.ek_key())).digest(),
        sha256(make.intermediate()).digest(),
        sha256(make.root()).digest(),
    ],
)
def test_whatever_is_denied_later_is_found(entry: bytes) -> None:
    """Rule 29: the EK itself, its certificate, and each CA above it, by certificate or by key."""
    with pytest.raises(EkCertificateRevoked) as caught:
        _again(denied=entry)
    assert caught.value.metadata["rule"] == EndorsementRule.DENIED


def test_an_ek_without_certificate_can_be_denied() -> None:
    """Its hash is all there is of it."""
    with pytest.raises(EkCertificateRevoked, match="is on the deny list"):
        _again(chain=(), denied=sha256(EK_PUBLIC).digest())


def test_a_list_that_came_later_revokes() -> None:
    """Rule 29: of the EK and of its CA; the host is refused with its next evidence."""
    for lists in ([_crl(4711)], [_crl(1), _root_crl(2)]):
        with pytest.raises(EkCertificateRevoked) as caught:
            _again(*lists)
        assert caught.value.metadata["rule"] == EndorsementRule.REVOKED
    with pytest.raises(EndorsementRejected) as missing:
        _again(policy=STRICT)
    assert missing.value.metadata["rule"] == EndorsementRule.CRL_MISSING


@pytest.mark.parametrize(("second", "good"), [(-1, False), (0, True), (3600, True), (3601, False)])
def test_a_list_counts_from_its_first_to_its_last_second(second: int, good: bool) -> None:
    """RFC 5280 5.1.2.5: thisUpdate and nextUpdate are within."""
    begins = datetime(2026, 6, 1, 12, tzinfo=UTC)
    when = {"this_update": b"260601120000Z", "next_update": b"260601130000Z"}
    lists = [_crl(**when), make.build_crl(make.root_key(), make.ROOT_NAME, [], **when)]
    if good:
        _again(*lists, policy=STRICT, now=begins + timedelta(seconds=second))
        return
    with pytest.raises(EndorsementRejected) as caught:
        _again(*lists, policy=STRICT, now=begins + timedelta(seconds=second))
    assert caught.value.metadata["rule"] == EndorsementRule.CRL_OUTDATED
