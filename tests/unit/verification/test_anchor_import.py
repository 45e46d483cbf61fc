"""What an import of anchors would trust, said before anybody says yes."""

from datetime import UTC, datetime

from support import ek_certificates as make
from support.corpus import corpus_folder
from support.deterministic_keys import rsa_private_key

from trustauthority.model.endorsement import EndorsementPolicy, EndorsementRule
from trustauthority.verification.anchor_import import AnchorImport, ImportUse, plan_anchor_import
from trustauthority.verification.endorsement import NOTHING_RELAXED

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def _plan(files: list[tuple[str, bytes]], **options: object) -> AnchorImport:
    return plan_anchor_import(
        files,
        now=NOW,
        policy=NOTHING_RELAXED,
        **options,  # type: ignore[arg-type]
    )


def _named(text: str) -> bytes:
    name = make.common_name(text)
    return make.root(issuer=name, subject=name)


def test_roots_become_anchors_and_other_cas_only_material() -> None:
    """Rule 28: an intermediate CA in a vendor's collection is not trusted by itself."""
    plan = _plan(
        [
            ("TrustedTpm/IFX/RootCA/r.cer", make.root()),
            ("IFX/IntermediateCA/i.crt", make.intermediate()),
        ]
    )
    (vendor,) = plan.vendors
    assert vendor.vendor == "IFX"
    assert [one.certificate.raw for one in vendor.anchors] == [make.root()]
    assert [one.raw for one in vendor.intermediates] == [make.intermediate()]
    assert plan.refused == ()


def test_every_refusal_says_why() -> None:
    """Nothing is dropped in silence: leaves, AIK CAs, forged, expired, malformed files."""
    aik = make.root(extensions=[*make.authority_extensions(), make.purposes(make.AIK_PURPOSE)])
    files = {
        "leaf.der": (make.endorsement(), EndorsementRule.BASIC_CONSTRAINTS),
        "aik.der": (aik, EndorsementRule.EXTENDED_KEY_USAGE),
        "forged.der": (
            make.root(signer=rsa_private_key("ekcerts/other")),
            EndorsementRule.SIGNATURE,
        ),
        "old.der": (
            make.root(not_after=make.tlv(0x17, b"210101000000Z")),
            EndorsementRule.EXPIRED,
        ),
        "ecdsa.der": (
            make.root(
                signer=make.ec_private_key(1),
                algorithm_id=make.SHA256_ECDSA,
                algorithm_parameters=None,
            ),
            EndorsementRule.ALGORITHM,
        ),
        "readme.txt": (b"hello", None),
    }
    plan = _plan([(name, data) for name, (data, _) in files.items()])
    assert plan.vendors == ()
    good = _plan([("readme.txt", b"hello"), ("root.der", make.root())])
    assert [one.use for one in good.candidates] == [ImportUse.NOTHING, ImportUse.ANCHOR]
    assert [str(one.use) for one in good.candidates] == ["nothing", "anchor"]
    assert {one.file: one.rule for one in plan.refused} == {
        name: rule for name, (_, rule) in files.items()
    }
    assert all(one.why for one in plan.refused)


def test_cas_of_software_tpms_are_not_for_production() -> None:
    """Rule 29: swtpm and snake-oil CAs only when the operator asks for them."""
    for text in ("swtpm-localca-rootca", "Snake Oil TPM CA", "ACME Test CA"):
        (refused,) = _plan([("ca.pem", _named(text))]).refused
        assert "software TPMs" in refused.why
        (taken,) = _plan([("ca.pem", _named(text))], allow_test_authorities=True).candidates
        assert taken.use is ImportUse.ANCHOR
    assert _plan([("ca.pem", _named("Contest Winner TPM CA"))]).refused == ()


def test_one_certificate_in_two_files_counts_once() -> None:
    """A bundle and the folder it was made from."""
    assert len(_plan([("a.der", make.root()), ("b.der", make.root())]).candidates) == 1


def test_a_root_signed_with_sha1_may_anchor() -> None:
    """An anchor is trusted as it stands; old vendors' roots are SHA-1."""
    assert _plan([("a.der", make.root(algorithm_id=make.SHA1_RSA))]).refused == ()


def test_the_vendor_is_the_folder_of_a_collection_or_the_organisation() -> None:
    """Rule 28: what would be trusted is shown by vendor, and a file name can't make one up."""
    named = {
        "TrustedTpm/AMD/RootCA/a.cer": "AMD",
        "AMD/Root/a.cer": "AMD",
        "AMD/intermediate/a.cer": "AMD",
        "AMD/IntermediateCA/a.cer": "AMD",
        "RootCA/a.cer": "Some CA",
        "AMD/other/a.cer": "Some CA",
        "a.cer": "Some CA",
    }
    for name, vendor in named.items():
        (found,) = _plan([(name, _named("Some CA"))]).candidates
        assert found.vendor.removeprefix("CN=") == vendor, name
    (nothing,) = _plan([("AMD/x/readme.txt", b"hello")]).candidates
    assert (nothing.vendor, nothing.certificate, nothing.use) == (
        "unknown",
        None,
        ImportUse.NOTHING,
    )


def test_vendors_are_shown_once_each_in_order() -> None:
    """Two folders of one vendor are one vendor, wherever its files stand in the list."""
    files = [
        ("B/RootCA/1.cer", _named("one")),
        ("A/RootCA/2.cer", _named("two")),
        ("B/RootCA/3.cer", _named("three")),
        ("B/IntermediateCA/4.cer", make.intermediate()),
    ]
    vendors = _plan(files).vendors
    assert [(one.vendor, len(one.anchors), len(one.intermediates)) for one in vendors] == [
        ("A", 1, 0),
        ("B", 2, 1),
    ]
    assert {one.why for one in _plan(files).candidates if one.use is ImportUse.ANCHOR} == {""}
    (chain_only,) = (one for one in _plan(files).candidates if one.use is ImportUse.INTERMEDIATE)
    assert chain_only.why == "not self-signed"


def test_the_vendor_pool_is_grouped_and_aik_cas_are_left_out() -> None:
    """Rule 28: of 510 CAs, hundreds are Microsoft's for AIKs and can't vouch for an EK."""
    files = [(one.name, one.read_bytes()) for one in sorted(corpus_folder("ca-pool").iterdir())]
    plan = plan_anchor_import(
        files, now=datetime(2026, 11, 1, tzinfo=UTC), policy=EndorsementPolicy()
    )
    vendors = {one.vendor: (len(one.anchors), len(one.intermediates)) for one in plan.vendors}
    assert vendors["Nuvoton Technology Corporation"][0] >= 10
    assert vendors["Infineon Technologies AG"][1] >= 100
    rules = [one.rule for one in plan.refused]
    assert rules.count(EndorsementRule.EXTENDED_KEY_USAGE) > 300
