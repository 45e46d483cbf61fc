"""Endorsement step by step: profile, chain, anchors, EKs without a certificate."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ek_certificates as make
from support.deterministic_keys import rsa_private_key

from trustauthority.codec.tpm_public import decode_public_sized
from trustauthority.codec.x509 import decode_certificate, decode_certificates
from trustauthority.errors import (
    ChainUntrusted,
    EkCertificateRevoked,
    EndorsementRejected,
    MalformedEvidence,
    TrustAuthorityError,
)
from trustauthority.model.endorsement import (
    AnchorKind,
    CaAnchor,
    CertificateRole,
    EkHashAnchor,
    EndorsementPolicy,
    EndorsementRule,
    Revocations,
    VerifiedEndorsement,
)
from trustauthority.verification.endorsement import (
    NOTHING_RELAXED,
    NOTHING_REVOKED,
    require_same_key,
    verify_certificate,
    verify_endorsement,
    verify_uncertified_endorsement,
)
from trustauthority.verification.endorsement_chain import (
    MAX_SIGNATURE_CHECKS,
    AnchorSet,
    CertificatePool,
    ChainSearch,
)
from trustauthority.verification.endorsement_profile import check_attestation_certificate, role_of

NOW = datetime(2026, 6, 1, tzinfo=UTC)
ROOT = CaAnchor(certificate=decode_certificate(make.root()))
BOOTS = Path(__file__).resolve().parents[2] / "vectors" / "boots"
GOOD = make.endorsement()
OTHER_NAME = make.common_name("Vector TPM EK CA 002")
OTHER_KEY = rsa_private_key("ekcerts/other")


def _verify(
    certificate: bytes,
    *authorities: bytes,
    anchors: AnchorSet | None = None,
    policy: EndorsementPolicy = NOTHING_RELAXED,
    revocations: Revocations = NOTHING_REVOKED,
    now: datetime = NOW,
) -> VerifiedEndorsement:
    return verify_endorsement(
        certificate,
        intermediates=CertificatePool(
            map(decode_certificate, authorities or (make.intermediate(),))
        ),
        anchors=anchors or AnchorSet([ROOT]),
        now=now,
        policy=policy,
        revocations=revocations,
    )


def _rule_of(certificate: bytes, *authorities: bytes, **options: object) -> EndorsementRule:
    with pytest.raises(EndorsementRejected) as caught:
        _verify(certificate, *authorities, **options)  # type: ignore[arg-type]
    assert {"issuer", "serial", "rule"} <= set(caught.value.metadata)
    return EndorsementRule(caught.value.metadata["rule"])


def test_a_verified_endorsement_carries_key_identity_chain_and_anchor() -> None:
    """Rule 22: what MakeCredential will be made for is the key of the verified certificate."""
    endorsement = _verify(GOOD)
    assert endorsement.public_key == make.ek_key().public_key()
    assert endorsement.public_key_info == make.public_key_info(make.ek_key())
    assert endorsement.certificate_sha256 == sha256(GOOD).digest()
    assert endorsement.tpm is not None
    assert endorsement.tpm.manufacturer_name == "IFX"
    assert [one.subject.text for one in endorsement.chain] == [
        "",
        "CN=Vector TPM EK CA 001",
        "CN=Vector TPM Root CA",
    ]
    assert endorsement.anchor_id == f"ca-certificate:{sha256(make.root()).hexdigest()}"
    assert endorsement.not_after == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize("kind", ["rsa", "p384"])
def test_the_certificates_of_a_software_tpm_verify(kind: str) -> None:
    """Rule 25: certificates that a real tool made, of TPMs that booted a guest."""
    anchor, middle = (
        decode_certificate((BOOTS / "ca" / name).read_bytes())
        for name in ("root.pem", "issuer.pem")
    )
    endorsement = verify_endorsement(
        (BOOTS / "good" / f"ek-{kind}.cert.der").read_bytes(),
        intermediates=CertificatePool([middle]),
        anchors=AnchorSet([CaAnchor(certificate=anchor)]),
        now=datetime(2027, 1, 1, tzinfo=UTC),
    )
    assert endorsement.tpm is not None
    assert endorsement.tpm.model == "swtpm"


def test_an_intermediate_ca_can_be_the_anchor() -> None:
    """Rule 28: trusting one manufacturing CA, not everything below a root."""
    middle = CaAnchor(certificate=decode_certificate(make.intermediate()))
    assert _verify(GOOD, anchors=AnchorSet([middle])).anchor_id == middle.anchor_id


def test_the_deadline_of_a_chain_is_its_first_end() -> None:
    """What is cached must not outlive any certificate of the chain."""
    ends = make.tlv(0x17, b"300101000000Z")
    assert _verify(GOOD, make.intermediate(not_after=ends)).not_after == datetime(
        2030, 1, 1, tzinfo=UTC
    )


# --- issuing CAs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"signer": OTHER_KEY}, EndorsementRule.SIGNATURE),
        ({"not_after": make.tlv(0x17, b"250101000000Z")}, EndorsementRule.EXPIRED),
        ({"not_before": make.tlv(0x17, b"280101000000Z")}, EndorsementRule.NOT_YET_VALID),
        ({"algorithm_id": make.SHA1_RSA}, EndorsementRule.SHA1),
        ({"version": None, "extensions": None}, EndorsementRule.VERSION),
        ({"extensions": [make.key_usage(5)]}, EndorsementRule.BASIC_CONSTRAINTS),
        (
            {"extensions": [make.basic_constraints(authority=False), make.key_usage(5)]},
            EndorsementRule.BASIC_CONSTRAINTS,
        ),
        (
            {"extensions": [make.basic_constraints(authority=True), make.key_usage(0)]},
            EndorsementRule.KEY_USAGE,
        ),
        ({"extensions": [make.basic_constraints(authority=True)]}, EndorsementRule.KEY_USAGE),
        (
            {"extensions": [*make.authority_extensions(), make.purposes(make.AIK_PURPOSE)]},
            EndorsementRule.EXTENDED_KEY_USAGE,
        ),
        (
            {
                "extensions": [
                    *make.authority_extensions(),
                    make.extension("2.5.29.30", make.sequence(), critical=True),
                ]
            },
            EndorsementRule.NAME_CONSTRAINTS,
        ),
        (
            {
                "extensions": [
                    *make.authority_extensions(),
                    make.extension("2.5.29.36", make.sequence(), critical=True),
                ]
            },
            EndorsementRule.CRITICAL_EXTENSION,
        ),
    ],
)
def test_a_ca_that_may_not_issue_is_refused(
    changes: dict[str, object], rule: EndorsementRule
) -> None:
    """N20, rules 27 and 28: expired, wrong, constrained, AIK-only and false CAs."""
    assert _rule_of(GOOD, make.intermediate(**changes)) is rule


def test_a_ca_with_a_weak_key_is_refused() -> None:
    """Rule 14: the whole chain is as weak as its weakest key."""
    weak = rsa_private_key("ekcerts/short", 1024)
    middle = make.intermediate(public_key_info=make.public_key_info(weak))
    assert _rule_of(make.endorsement(signer=weak), middle) is EndorsementRule.WEAK_KEY


def test_a_path_length_is_kept() -> None:
    """RFC 5280 4.2.1.9: CA 001 allows no CA below it."""
    below = make.build(
        make.Template(
            signer=make.ca_key(),
            public_key_info=make.public_key_info(OTHER_KEY),
            issuer=make.CA_NAME,
            subject=OTHER_NAME,
            extensions=make.authority_extensions(),
        )
    )
    leaf = make.endorsement(signer=OTHER_KEY, issuer=OTHER_NAME)
    assert _rule_of(leaf, below, make.intermediate()) is EndorsementRule.PATH_LENGTH
    unlimited = make.intermediate(extensions=make.authority_extensions())
    assert len(_verify(leaf, below, unlimited).chain) == 4


def test_an_ek_certificate_never_acts_as_a_ca() -> None:
    """Rule 27: who holds one EK can't make others."""
    named = make.endorsement(subject=OTHER_NAME, extensions=make.ek_extensions(san=make.tpm_name()))
    forged = make.endorsement(signer=make.ek_key(), issuer=OTHER_NAME)
    assert _rule_of(forged, named, make.intermediate()) is EndorsementRule.BASIC_CONSTRAINTS


def test_a_second_ca_of_the_same_name_does_not_stop_the_search() -> None:
    """Vendors re-issue CAs under one name; the signature decides, in any order."""
    decoy = make.intermediate(public_key_info=make.public_key_info(OTHER_KEY), serial=99)
    expired = make.intermediate(not_after=make.tlv(0x17, b"250101000000Z"), serial=98)
    for pool in ((decoy, expired, make.intermediate()), (make.intermediate(), expired, decoy)):
        assert _verify(GOOD, *pool).chain[1].serial_number == 2


def test_the_reason_names_a_broken_rule_before_a_missing_issuer() -> None:
    """An operator repairs an expired CA, not a decoy."""
    decoy = make.intermediate(public_key_info=make.public_key_info(OTHER_KEY), serial=99)
    expired = make.intermediate(not_after=make.tlv(0x17, b"250101000000Z"))
    assert _rule_of(GOOD, decoy, expired) is EndorsementRule.EXPIRED


def _tower(height: int) -> tuple[bytes, list[bytes]]:
    """An EK certificate ``height`` CAs below the root."""
    keys = [make.root_key(), *(make.ca_key() for _ in range(height))]
    names = [make.ROOT_NAME, *(make.common_name(f"CA {number}") for number in range(height))]
    authorities = [
        make.build(
            make.Template(
                signer=keys[number],
                public_key_info=make.public_key_info(keys[number + 1]),
                issuer=names[number],
                subject=names[number + 1],
                extensions=make.authority_extensions(),
            )
        )
        for number in range(height)
    ]
    return make.endorsement(issuer=names[-1]), authorities


def test_eight_certificates_are_a_chain_and_nine_are_not() -> None:
    """N20: depth is bounded."""
    leaf, authorities = _tower(6)
    assert len(_verify(leaf, *authorities).chain) == 8
    leaf, authorities = _tower(7)
    assert _rule_of(leaf, *authorities) is EndorsementRule.CHAIN_LENGTH


def test_hostile_pools_and_certificates_are_refused_at_a_bounded_price() -> None:
    """N20: 1 MiB, depth 20, and 500 issuers of one name; what they cost is in benchmarks/."""
    with pytest.raises(MalformedEvidence):
        _verify(GOOD + bytes(1 << 20))
    leaf, authorities = _tower(20)
    assert _rule_of(leaf, *authorities) is EndorsementRule.CHAIN_LENGTH
    crowd = [make.intermediate(serial=number, signer=OTHER_KEY) for number in range(3, 500)]
    assert len(crowd) > MAX_SIGNATURE_CHECKS
    assert _rule_of(GOOD, *crowd, make.intermediate()) is EndorsementRule.SIGNATURE


def test_issuers_that_issue_each_other_are_no_endless_loop() -> None:
    """Every certificate is in a chain at most once."""
    loop = make.intermediate(
        signer=make.ca_key(), issuer=make.CA_NAME, serial=9, extensions=make.authority_extensions()
    )
    assert _rule_of(GOOD, loop) is EndorsementRule.NO_ISSUER


# --- what a policy relaxes -------------------------------------------------------------------------


def test_an_expired_ek_is_accepted_only_by_its_knob() -> None:
    """Rule 27: «ignore notAfter for EK» is explicit, off by default, and for leaves only."""
    expired = make.endorsement(not_after=make.tlv(0x17, b"210101000000Z"))
    assert _rule_of(expired) is EndorsementRule.EXPIRED
    relaxed = EndorsementPolicy(ignore_ek_not_after=True)
    assert _verify(expired, policy=relaxed).not_after == datetime(2021, 1, 1, tzinfo=UTC)
    old_ca = make.intermediate(not_after=make.tlv(0x17, b"210101000000Z"))
    assert _rule_of(GOOD, old_ca, policy=relaxed) is EndorsementRule.EXPIRED
    assert _verify(GOOD, old_ca, policy=EndorsementPolicy(ignore_ca_not_after=True))


def test_no_knob_makes_the_future_valid() -> None:
    """Only notAfter can be ignored."""
    future = make.endorsement(not_before=make.tlv(0x17, b"280101000000Z"))
    policy = EndorsementPolicy(ignore_ek_not_after=True, ignore_ca_not_after=True)
    assert _rule_of(future, policy=policy) is EndorsementRule.NOT_YET_VALID


def test_a_certificate_is_valid_from_its_first_to_its_last_second() -> None:
    """RFC 5280 4.1.2.5: both ends are within."""
    short = make.endorsement(
        not_before=make.tlv(0x17, b"260601120000Z"), not_after=make.tlv(0x17, b"260601130000Z")
    )
    begins = datetime(2026, 6, 1, 12, tzinfo=UTC)
    for second in (0, 1, 3599, 3600):
        assert _verify(short, now=begins + timedelta(seconds=second))
    assert _rule_of(short, now=begins - timedelta(seconds=1)) is EndorsementRule.NOT_YET_VALID
    assert _rule_of(short, now=begins + timedelta(seconds=3601)) is EndorsementRule.EXPIRED


def test_sha1_is_for_intermediate_cas_by_policy() -> None:
    """Rule 12: SHA-1 only under a named policy, and not where anybody chooses the content."""
    policy = EndorsementPolicy(allow_sha1_signatures=True)
    old = make.intermediate(algorithm_id=make.SHA1_RSA)
    assert _rule_of(GOOD, old) is EndorsementRule.SHA1
    assert _verify(GOOD, old, policy=policy)
    leaf = make.endorsement(algorithm_id=make.SHA1_RSA)
    assert _rule_of(leaf, policy=policy) is EndorsementRule.SHA1


def test_sha1_over_an_ek_has_a_name_of_its_own() -> None:
    """Rule 12: Infineon signed EKs so until 2018; who allows that has not allowed it of CAs."""
    policy = EndorsementPolicy(allow_sha1_leaf=True)
    leaf = make.endorsement(algorithm_id=make.SHA1_RSA)
    assert _rule_of(leaf) is EndorsementRule.SHA1
    assert _verify(leaf, policy=policy)
    old = make.intermediate(algorithm_id=make.SHA1_RSA)
    assert _rule_of(GOOD, old, policy=policy) is EndorsementRule.SHA1
    forged = make.endorsement(algorithm_id=make.SHA1_RSA, signer=OTHER_KEY)
    assert _rule_of(forged, policy=policy) is EndorsementRule.SIGNATURE


def test_an_anchor_signed_with_sha1_is_as_good_as_any() -> None:
    """An anchor is trusted as it stands; nothing rests on its own signature."""
    old_root = CaAnchor(certificate=decode_certificate(make.root(algorithm_id=make.SHA1_RSA)))
    assert _verify(GOOD, anchors=AnchorSet([old_root])).anchor_id == old_root.anchor_id


def test_an_anchor_vouches_for_the_manufacturers_it_names() -> None:
    """Rule 28: the root of one vendor says nothing about the TPMs of another."""
    assert _verify(GOOD, anchors=AnchorSet([replace(ROOT, manufacturers=frozenset({"IFX"}))]))
    strict = AnchorSet([replace(ROOT, manufacturers=frozenset({"STM"}))])
    assert _rule_of(GOOD, anchors=strict) is EndorsementRule.MANUFACTURER


def test_a_leaf_among_the_anchors_anchors_nothing() -> None:
    """An EK is anchored by its public's hash, never by a certificate in the wrong list."""
    wrong = AnchorSet([CaAnchor(certificate=decode_certificate(GOOD))])
    assert _rule_of(GOOD, anchors=wrong) is EndorsementRule.NO_ISSUER


# --- other roles -----------------------------------------------------------------------------------


def _attestation(purpose: str, **changes: object) -> bytes:
    extensions = make.ek_extensions(usage=make.key_usage(0), purpose=make.purposes(purpose))
    return make.endorsement(extensions=extensions, **changes)


@pytest.mark.parametrize("purpose", [make.EK_PURPOSE, make.AIK_PURPOSE])
def test_an_ak_certificate_is_one_but_no_ek(purpose: str) -> None:
    """Rule 27: a cloud gives AKs the purpose of EKs; the key usage tells them apart."""
    certificate = decode_certificate(_attestation(purpose))
    open_ca = decode_certificate(make.intermediate(extensions=make.authority_extensions()))
    chain = verify_certificate(
        certificate, intermediates=CertificatePool([open_ca]), anchors=AnchorSet([ROOT]), now=NOW
    )
    assert (chain.role, chain.leaf) == (CertificateRole.ATTESTATION_KEY, certificate)
    assert _rule_of(certificate.raw) is EndorsementRule.KEY_USAGE


def _verify_any(certificate: bytes, *authorities: bytes, **options: object) -> CertificateRole:
    """The role of a certificate that verifies below the root."""
    return verify_certificate(
        decode_certificate(certificate),
        intermediates=CertificatePool(map(decode_certificate, authorities)),
        now=NOW,
        **({"anchors": AnchorSet([ROOT])} | options),  # type: ignore[arg-type]
    ).role


def test_an_ak_certificate_names_its_tpm() -> None:
    """Rules 26, 27: a certificate for signing without manufacturer, model and version is no AK's."""
    bare = make.ek_extensions(
        san=None, usage=make.key_usage(0), purpose=make.purposes(make.AIK_PURPOSE)
    )
    open_ca = make.intermediate(extensions=make.authority_extensions())
    with pytest.raises(EndorsementRejected, match="manufacturer, model or version is missing"):
        _verify_any(make.endorsement(extensions=bare, subject=OTHER_NAME), open_ca)
    assert _verify_any(_attestation(make.AIK_PURPOSE), open_ca) is CertificateRole.ATTESTATION_KEY


def test_an_anchor_vouches_for_the_aks_of_its_manufacturers_only() -> None:
    """Rule 28: an AK's certificate is bound like an EK's; a CA has no manufacturer to be bound by."""
    open_ca = make.intermediate(extensions=make.authority_extensions())
    strict = AnchorSet([replace(ROOT, manufacturers=frozenset({"STM"}))])
    with pytest.raises(EndorsementRejected, match="does not vouch for manufacturer 'IFX'"):
        _verify_any(_attestation(make.AIK_PURPOSE), open_ca, anchors=strict)
    assert _verify_any(open_ca, anchors=strict) is CertificateRole.AUTHORITY


@pytest.mark.parametrize(
    "change",
    [{"basic": make.basic_constraints(authority=True)}, {"usage": make.key_usage(0, 5)}],
)
def test_an_ak_certificate_never_acts_as_a_ca(change) -> None:
    """Rule 27: who asks for an AK's certificate takes no CA for one, whatever role it claims."""
    extensions = {"usage": make.key_usage(0), "purpose": make.purposes(make.AIK_PURPOSE)} | change
    der = make.endorsement(extensions=make.ek_extensions(**extensions))
    with pytest.raises(EndorsementRejected, match=r"acts as a CA|may sign certificates"):
        check_attestation_certificate(decode_certificate(der), NOW, NOTHING_RELAXED)


@pytest.mark.parametrize(
    ("usage", "purpose", "role"),
    [
        (make.key_usage(2), make.purposes(make.EK_PURPOSE), CertificateRole.ENDORSEMENT_KEY),
        (make.key_usage(2), None, CertificateRole.ENDORSEMENT_KEY),
        (make.key_usage(2), make.purposes("2.5.29.37.0"), CertificateRole.ENDORSEMENT_KEY),
        (make.key_usage(0), make.purposes(make.AIK_PURPOSE), CertificateRole.ATTESTATION_KEY),
        (make.key_usage(2), make.purposes(make.AIK_PURPOSE), CertificateRole.OTHER),
        (make.key_usage(2), make.purposes("1.3.6.1.5.5.7.3.1"), CertificateRole.OTHER),
        (make.key_usage(1), make.purposes(make.EK_PURPOSE), CertificateRole.OTHER),
        (None, make.purposes(make.EK_PURPOSE), CertificateRole.OTHER),
        (make.key_usage(5), make.purposes(make.EK_PURPOSE), CertificateRole.AUTHORITY),
        (make.key_usage(6), None, CertificateRole.AUTHORITY),
    ],
)
def test_what_a_certificate_claims_to_be(usage, purpose, role) -> None:
    """Rule 27: usage and purpose say the role, whose checks follow; what fits none is refused as such."""
    der = make.endorsement(extensions=make.ek_extensions(usage=usage, purpose=purpose))
    assert role_of(decode_certificate(der)) is role
    if role is CertificateRole.OTHER:
        with pytest.raises(EndorsementRejected, match="is no EK's, no AK's and no CA's"):
            _verify_any(der, make.intermediate())


def test_a_ca_below_a_ca_that_allows_none_is_refused() -> None:
    """RFC 5280 4.2.1.9: a path length counts for a CA certificate that is itself asked about."""
    narrow = CaAnchor(
        certificate=decode_certificate(make.root(extensions=make.authority_extensions(0)))
    )
    with pytest.raises(EndorsementRejected, match="allows 0 CAs below it, not 1"):
        _verify_any(make.intermediate(), anchors=AnchorSet([narrow]))
    assert _verify_any(make.intermediate()) is CertificateRole.AUTHORITY


def test_a_ca_signed_with_sha1_is_judged_as_one_wherever_it_stands() -> None:
    """Rule 12: the policy that lets intermediate CAs pass lets them pass when they are asked about."""
    old = make.intermediate(algorithm_id=make.SHA1_RSA)
    policy = EndorsementPolicy(allow_sha1_signatures=True)
    assert _verify_any(old, policy=policy) is CertificateRole.AUTHORITY
    with pytest.raises(EndorsementRejected, match="SHA-1"):
        _verify_any(old)


def test_the_issuer_with_the_right_key_is_tried_first() -> None:
    """Signature checks are bounded: namesakes in the pool must not eat them up."""
    namesakes = [make.intermediate(signer=OTHER_KEY, serial=n) for n in (21, 22)]
    named = [*make.authority_extensions(0), make.key_identifiers(b"another", None)[0]]
    stranger = make.intermediate(extensions=named)
    pool = CertificatePool(map(decode_certificate, (stranger, *namesakes, make.intermediate())))
    first = pool.issuers_of(decode_certificate(GOOD))[0]
    wanted = decode_certificate(GOOD).authority_key_identifier
    assert wanted is not None
    assert first.subject_key_identifier == wanted.key_identifier
    assert len(pool.issuers_of(decode_certificate(GOOD))) == 4


def test_an_aik_needs_a_ca_for_aiks() -> None:
    """Rule 28: CA 001 is for EKs only."""
    with pytest.raises(EndorsementRejected, match=r"not for 2\.23\.133\.8\.3"):
        verify_certificate(
            decode_certificate(_attestation(make.AIK_PURPOSE)),
            intermediates=CertificatePool([decode_certificate(make.intermediate())]),
            anchors=AnchorSet([ROOT]),
            now=NOW,
        )


def test_vendor_cas_chain_like_everything_else() -> None:
    """The offline tool judges CA certificates too; an anchor is its own chain."""
    for der, length in ((make.intermediate(), 2), (make.root(), 1)):
        chain = verify_certificate(
            decode_certificate(der),
            intermediates=CertificatePool(),
            anchors=AnchorSet([ROOT]),
            now=NOW,
        )
        assert (chain.role, len(chain.certificates)) == (CertificateRole.AUTHORITY, length)


# --- EKs without a certificate ---------------------------------------------------------------------

EK_PUBLIC = decode_public_sized((BOOTS / "good" / "ek.pub").read_bytes()).raw
EK_ANCHOR = EkHashAnchor(sha256=sha256(EK_PUBLIC).digest())


def test_an_ek_without_certificate_is_admitted_by_its_own_anchor() -> None:
    """Issue 3: by the SHA-256 of its TPMT_PUBLIC, one TPM at a time."""
    endorsement = verify_uncertified_endorsement(EK_PUBLIC, anchors=AnchorSet([EK_ANCHOR]))
    assert endorsement.anchor_id == f"{AnchorKind.EK_HASH}:{sha256(EK_PUBLIC).hexdigest()}"
    assert (endorsement.chain, endorsement.certificate_sha256, endorsement.tpm) == ((), None, None)
    key = serialization.load_der_public_key(endorsement.public_key_info)
    assert isinstance(key, rsa.RSAPublicKey)
    assert key == endorsement.public_key


def test_an_ek_that_no_anchor_names_is_untrusted() -> None:
    """A CA anchor says nothing about an EK without a certificate."""
    with pytest.raises(ChainUntrusted) as caught:
        verify_uncertified_endorsement(EK_PUBLIC, anchors=AnchorSet([ROOT]))
    assert caught.value.metadata["rule"] == EndorsementRule.ANCHOR_DIFFERS


def test_an_anchored_key_must_still_be_an_ek() -> None:
    """Rule 22: an anchor over an AK's public does not make it an EK."""
    public = decode_public_sized((BOOTS / "good" / "ak.pub").read_bytes()).raw
    anchors = AnchorSet([EkHashAnchor(sha256=sha256(public).digest())])
    with pytest.raises(EndorsementRejected) as caught:
        verify_uncertified_endorsement(public, anchors=anchors)
    assert caught.value.metadata["rule"] == EndorsementRule.TEMPLATE


def test_a_denied_ek_is_refused_although_anchored() -> None:
    """Rule 29: narrowing wins."""
    denied = Revocations(denied=frozenset({sha256(EK_PUBLIC).digest()}))
    with pytest.raises(EkCertificateRevoked):
        verify_uncertified_endorsement(
            EK_PUBLIC, anchors=AnchorSet([EK_ANCHOR]), revocations=denied
        )


def test_an_anchor_hash_has_32_bytes() -> None:
    """A truncated hash would admit more than one key."""
    with pytest.raises(ValueError, match="32 bytes"):
        EkHashAnchor(sha256=b"\x00" * 20)


def test_the_ek_public_must_be_the_key_of_the_certificate() -> None:
    """Rule 22: a good certificate shown with another EK public gets no credential."""
    endorsement = verify_uncertified_endorsement(EK_PUBLIC, anchors=AnchorSet([EK_ANCHOR]))
    require_same_key(endorsement, EK_PUBLIC)
    with pytest.raises(EndorsementRejected) as caught:
        require_same_key(_verify(GOOD), EK_PUBLIC)
    assert caught.value.metadata["rule"] == EndorsementRule.KEY_DIFFERS


# --- forgery -----------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(bit=st.integers(0, 8 * len(GOOD) - 1))
def test_no_single_flipped_bit_verifies(bit: int) -> None:
    """N13: refused or malformed, whichever bit it is."""
    flipped = bytearray(GOOD)
    flipped[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(TrustAuthorityError) as caught:
        _verify(bytes(flipped))
    assert isinstance(caught.value, EndorsementRejected | MalformedEvidence)


@settings(max_examples=100, deadline=None)
@given(bit=st.integers(0, 8 * len(make.intermediate()) - 1))
def test_no_flipped_bit_of_an_issuer_verifies(bit: int) -> None:
    """N13: nor one of the CA in between."""
    flipped = bytearray(make.intermediate())
    flipped[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(TrustAuthorityError):
        _verify(GOOD, bytes(flipped))


def test_a_bundle_is_no_certificate_of_an_ek() -> None:
    """One certificate per question: which of several was meant is not ours to guess."""
    bundle = (BOOTS / "ca" / "root.pem").read_bytes() + (BOOTS / "ca" / "issuer.pem").read_bytes()
    assert len(decode_certificates(bundle)) == 2
    with pytest.raises(MalformedEvidence):
        _verify(bundle)


def test_a_leaf_of_version_1_is_no_ek() -> None:
    """RFC 5280: without extensions nothing says what a certificate is for."""
    assert _rule_of(make.endorsement(version=None, extensions=None)) is (
        EndorsementRule.SUBJECT_ALTERNATIVE_NAME
    )


def test_sets_count_what_they_hold() -> None:
    """Duplicates count once; CAs and single EKs are both anchors."""
    middle = decode_certificate(make.intermediate())
    assert len(CertificatePool([middle, middle])) == 1
    assert len(AnchorSet([ROOT, ROOT, EK_ANCHOR])) == 2


def test_a_maze_of_cas_ends_at_the_64th_signature() -> None:
    """N20: CAs that all sign each other make 9! paths; the search stops long before."""
    authority = {"signer": make.ca_key(), "extensions": make.authority_extensions()}
    maze = [
        make.intermediate(serial=number, issuer=make.CA_NAME, **authority)
        for number in range(3, 12)
    ]
    search = ChainSearch(
        intermediates=CertificatePool(map(decode_certificate, maze)),
        anchors=AnchorSet([ROOT]),
        now=NOW,
        policy=NOTHING_RELAXED,
        revocations=NOTHING_REVOKED,
        purposes=None,
    )
    with pytest.raises(ChainUntrusted):
        search.find(decode_certificate(GOOD))
    assert search.checks_left == 0


def test_extra_fields_of_a_signature_algorithm_are_kept_and_ignored() -> None:
    """Rule 25, A.1: Intel's OnDie CA roots carry some; inside and outside they are the same bytes."""
    padded = make.endorsement(
        algorithm_id=make.SHA256_RSA, algorithm_parameters=b"\x05\x00\x05\x00"
    )
    assert _verify(padded).certificate_sha256 == sha256(padded).digest()


def test_a_signature_of_an_unknown_algorithm_is_no_chain() -> None:
    """Rule 13: an unknown algorithm never skips the verification."""
    good = make.sequence(make.oid(make.SHA256_RSA), b"\x05\x00")
    unknown = make.sequence(make.oid("1.2.840.113549.1.1.99"), b"\x05\x00")
    assert _rule_of(GOOD.replace(good, unknown)) is EndorsementRule.ALGORITHM


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("id:49465800", "IFX"),
        ("id:53544D20", "STM"),
        ("id:474F4F47", "GOOG"),
        ("id:00001014", "id:00001014"),
        ("Nuvoton", "Nuvoton"),
        ("id:4946580", "id:4946580"),
    ],
)
def test_manufacturers_are_named_as_people_write_them(text: str, name: str) -> None:
    """TCG vendor ids: ASCII letters padded with zero or space; what is none stays as it is."""
    leaf = make.endorsement(extensions=make.ek_extensions(san=make.tpm_name(text)))
    assert decode_certificate(leaf).tpm.manufacturer_name == name
