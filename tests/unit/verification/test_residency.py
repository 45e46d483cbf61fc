"""Residency of the three keys: every attribute, name and field that must hold, broken one by one."""

import hashlib
import struct
from dataclasses import dataclass, field, replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support import tpm_structures as build
from support.deterministic_keys import roca_private_key, rsa_private_key

from trustauthority.codec.tpm import decode_public
from trustauthority.errors import MalformedEvidence, ResidencyUnproven
from trustauthority.model.tpm import TpmAlgorithm
from trustauthority.verification.ektemplate import EK_TEMPLATES, check_endorsement_key
from trustauthority.verification.residency import (
    ClaimedKeys,
    EnrolmentBinding,
    KeyCertification,
    certification_data,
    verify_residency,
)

EK_ATTRIBUTES = 0x000300B2
HIGH_RANGE = 0x000300F2
OWNER = struct.pack(">I", 0x40000001)
ENDORSEMENT = struct.pack(">I", 0x4000000B)
EK_KEY = build.rsa_key()
AK = build.SoftwareKey.ecdsa()
TLS_KEY = ec.generate_private_key(ec.SECP256R1())
STORAGE_KEY = ec.generate_private_key(ec.SECP256R1())
BINDING = EnrolmentBinding(
    authority_ca_sha256=hashlib.sha256(b"ca").digest(),
    cluster="east",
    host_label="node-1",
    challenge=b"challenge token",
)


def ek_area(**changes):
    """TPMT_PUBLIC of an EK of template L-1."""
    fields = {"symmetric": build.AES_128_CFB, "policy": build.POLICY_A} | changes
    return build.public_area(
        fields.pop("key", EK_KEY.public_key()),
        fields.pop("attributes", EK_ATTRIBUTES),
        **fields,
    )


@dataclass(frozen=True)
class Enrolment:
    """What a host sends; a test changes one thing, and everything signed follows."""

    ek: bytes = field(default_factory=ek_area)
    ak: build.SoftwareKey = AK
    ak_area: bytes = b""
    tls: bytes = build.public_area(TLS_KEY.public_key(), build.TLS_ATTRIBUTES)
    storage: bytes = build.public_area(
        STORAGE_KEY.public_key(), build.STORAGE_ATTRIBUTES, symmetric=build.AES_128_CFB
    )
    signed_for: EnrolmentBinding = BINDING
    tls_fields: dict = field(default_factory=dict)
    storage_fields: dict = field(default_factory=dict)

    def claimed(self) -> ClaimedKeys:
        """The publics and the certifications that this AK makes of them."""
        ak_area = self.ak_area or self.ak.public
        return ClaimedKeys(
            ek=decode_public(self.ek),
            ak=decode_public(ak_area),
            tls=decode_public(self.tls),
            storage=decode_public(self.storage),
            tls_certification=self._certify("tls", self.tls, self.tls_fields),
            storage_certification=self._certify("storage", self.storage, self.storage_fields),
        )

    def _certify(self, role: str, area: bytes, changes: dict) -> KeyCertification:
        ak_name = build.name_of(self.ak_area or self.ak.public)
        ek_qualified = build.qualified(ENDORSEMENT, build.name_of(self.ek))
        fields = {
            "name": build.name_of(area),
            "qualified_name": build.qualified(OWNER, build.name_of(area)),
            "signer": build.qualified(ek_qualified, ak_name),
            "extra_data": certification_data(
                self.signed_for, decode_public(self.ek), ak_name, role
            ),
        } | changes
        signer = fields.pop("key", self.ak)
        attest, signature = build.make_certification(signer, **fields)
        return KeyCertification(attest=attest, signature=signature)


def refuse(enrolment: Enrolment, message: str, binding: EnrolmentBinding = BINDING) -> None:
    """Assert that the enrolment is refused and the refusal names the attribute."""
    with pytest.raises(ResidencyUnproven, match=message):
        verify_residency(enrolment.claimed(), binding)


class TestAccepted:
    def test_names_are_computed_here(self):
        """The names that MakeCredential and later quotes need come from the publics (pitfall 20)."""
        enrolment = Enrolment()
        keys = verify_residency(enrolment.claimed(), BINDING)

        ek_qualified = build.qualified(ENDORSEMENT, build.name_of(enrolment.ek))
        assert keys.ek_name == build.name_of(enrolment.ek)
        assert keys.ak_name == build.name_of(AK.public)
        assert keys.ak_qualified_name == build.qualified(ek_qualified, keys.ak_name)
        assert keys.tls_name == build.name_of(enrolment.tls)
        assert keys.storage_name == build.name_of(enrolment.storage)

    def test_tls_key_below_the_storage_parent(self):
        """The TLS identity may be a child of the storage parent: still the owner hierarchy."""
        plain = Enrolment()
        parent = build.qualified(OWNER, build.name_of(plain.storage))
        child = build.qualified(parent, build.name_of(plain.tls))
        enrolment = Enrolment(tls_fields={"qualified_name": child})
        assert verify_residency(enrolment.claimed(), BINDING).tls_name == build.name_of(plain.tls)

    def test_clock_is_that_of_the_later_certification(self):
        """Later structures must be newer than both certifications (N17)."""
        enrolment = Enrolment(
            tls_fields={"clock": (900, 6, 0, 1)}, storage_fields={"clock": (1_000, 5, 9, 1)}
        )
        keys = verify_residency(enrolment.claimed(), BINDING)
        assert keys.clock_info.position == (6, 0, 900)

    @pytest.mark.parametrize(
        "ak",
        [
            build.SoftwareKey.rsa(),
            build.SoftwareKey.rsa("rsapss", "sha384"),
            build.SoftwareKey.ecdsa("P-384", "sha384"),
        ],
        ids=["rsassa", "rsapss", "p384"],
    )
    def test_other_kinds_of_ak(self, ak):
        """RSASSA, RSAPSS and ECDSA AKs may enrol (pitfall 11)."""
        keys = verify_residency(Enrolment(ak=ak).claimed(), BINDING)
        assert keys.ak_name == build.name_of(ak.public)

    def test_tls_key_with_a_fixed_scheme(self):
        """A TLS identity may fix a scheme that TLS 1.3 has."""
        scheme = struct.pack(">HH", 0x0018, 0x000B)
        tls = build.public_area(TLS_KEY.public_key(), build.TLS_ATTRIBUTES, scheme=scheme)
        assert verify_residency(Enrolment(tls=tls).claimed(), BINDING).tls_name


ROLES = {
    "ak": build.AK_ATTRIBUTES,
    "tls": build.TLS_ATTRIBUTES,
    "storage": build.STORAGE_ATTRIBUTES,
}


def with_attributes(role: str, attributes: int) -> Enrolment:
    """An enrolment in which one key has other attributes."""
    if role == "ak":
        return Enrolment(ak=replace(AK, attributes=attributes))
    key, symmetric = (TLS_KEY, build.NULL) if role == "tls" else (STORAGE_KEY, build.AES_128_CFB)
    area = build.public_area(key.public_key(), attributes, symmetric=symmetric)
    return Enrolment(**{role: area})


class TestAttributes:
    @pytest.mark.parametrize("role", list(ROLES))
    @pytest.mark.parametrize(
        ("bit", "spelling"),
        [
            (build.FIXED_TPM, "fixedTPM"),
            (build.FIXED_PARENT, "fixedParent"),
            (build.SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
            (build.NO_DA, "noDA"),
        ],
    )
    def test_each_key_must_live_in_the_tpm(self, role, bit, spelling):
        """A key that may leave the TPM, came from outside or can lock it out is refused (N16, N82)."""
        refuse(with_attributes(role, ROLES[role] & ~bit), f"{role}: {spelling} is not set")

    @pytest.mark.parametrize(
        ("role", "bit", "message"),
        [
            ("ak", build.RESTRICTED, "ak: restricted is not set"),
            ("ak", build.SIGN, "ak: sign is not set"),
            ("tls", build.SIGN, "tls: sign is not set"),
            ("storage", build.RESTRICTED, "storage: restricted is not set"),
            ("storage", build.DECRYPT, "storage: decrypt is not set"),
        ],
    )
    def test_role_attribute_missing(self, role, bit, message):
        """Each key must be able to do what its role is, and only within the TPM (N16, N82)."""
        refuse(with_attributes(role, ROLES[role] & ~bit), message)

    @pytest.mark.parametrize(
        ("role", "bit", "message"),
        [
            ("ak", build.DECRYPT, "ak: decrypt is set"),
            ("tls", build.RESTRICTED, "tls: restricted is set"),
            ("tls", build.DECRYPT, "tls: decrypt is set"),
            ("storage", build.SIGN, "storage: sign is set"),
        ],
    )
    def test_attribute_of_another_role(self, role, bit, message):
        """A key of two roles is refused: restricted as TLS key, decrypt with sign (N82)."""
        refuse(with_attributes(role, ROLES[role] | bit), message)

    @pytest.mark.parametrize("name_alg", [0x0004, 0x0010, 0x0012], ids=["sha1", "null", "sm3"])
    @pytest.mark.parametrize("role", ["tls", "storage"])
    def test_weak_name_algorithm(self, role, name_alg):
        """Names must be SHA-256 or stronger (pitfall 19)."""
        key = TLS_KEY if role == "tls" else STORAGE_KEY
        area = build.public_area(key.public_key(), ROLES[role], name_alg=name_alg)
        enrolment = Enrolment().claimed()
        changed = replace(enrolment, **{role: decode_public(area)})
        with pytest.raises(ResidencyUnproven, match=f"{role}: nameAlg"):
            verify_residency(changed, BINDING)

    def test_refusal_carries_the_attribute(self):
        """The attribute is in the metadata, for the operator's message."""
        with pytest.raises(ResidencyUnproven) as caught:
            verify_residency(
                with_attributes("ak", build.AK_ATTRIBUTES & ~build.RESTRICTED).claimed(), BINDING
            )
        assert caught.value.metadata == {"attribute": "restricted"}


class TestSchemes:
    def test_ak_without_scheme(self):
        """An AK that leaves its scheme open is refused (pitfall 19)."""
        area = build.public_area(AK.private.public_key(), build.AK_ATTRIBUTES)
        refuse(Enrolment(ak_area=area), "ak: scheme: must be RSASSA")

    def test_ak_with_a_group_scheme(self):
        """ECDAA and its like are not verified here, so not enrolled."""
        scheme = struct.pack(">HHH", 0x001A, 0x000B, 0)
        area = build.public_area(AK.private.public_key(), build.AK_ATTRIBUTES, scheme=scheme)
        refuse(Enrolment(ak_area=area), "ak: scheme")

    def test_ak_of_sha1(self):
        """An AK that signs with SHA-1 is not enrolled (pitfall 12)."""
        refuse(Enrolment(ak=replace(AK, hash="sha1")), "ak: scheme: hash sha1")

    @pytest.mark.parametrize(
        "scheme",
        [(0x0014, 0x000B), (0x0016, 0x0004), (0x0018, 0x0004)],
        ids=["rsassa", "pss-sha1", "ecdsa-sha1"],
    )
    def test_tls_scheme_that_tls_lacks(self, scheme):
        """A TLS identity must be able to do TLS 1.3: no RSASSA, no SHA-1."""
        key = TLS_KEY if scheme[0] == 0x0018 else rsa_private_key("tls")
        area = build.public_area(
            key.public_key(), build.TLS_ATTRIBUTES, scheme=struct.pack(">HH", *scheme)
        )
        refuse(Enrolment(tls=area), "tls: scheme")

    @pytest.mark.parametrize(
        "cipher",
        [
            build.NULL,
            struct.pack(">HHH", 0x0006, 192, 0x0043),
            struct.pack(">HHH", 0x0006, 128, 0x0042),
            struct.pack(">HHH", 0x0026, 128, 0x0043),
        ],
        ids=["none", "aes-192", "cbc", "camellia"],
    )
    def test_storage_cipher(self, cipher):
        """A storage parent wraps with AES-128 or AES-256 in CFB mode (design 6.1)."""
        area = build.public_area(
            STORAGE_KEY.public_key(), build.STORAGE_ATTRIBUTES, symmetric=cipher
        )
        refuse(Enrolment(storage=area), "storage: symmetric")

    def test_storage_with_a_scheme(self):
        """A restricted decryption key has no scheme of its own."""
        area = build.public_area(
            STORAGE_KEY.public_key(),
            build.STORAGE_ATTRIBUTES,
            symmetric=build.AES_128_CFB,
            scheme=struct.pack(">HH", 0x0019, 0x000B),
        )
        refuse(Enrolment(storage=area), "storage: scheme")

    @pytest.mark.parametrize("role", ["tls", "storage"])
    def test_weak_keys(self, role):
        """Short, small-exponent and ROCA keys are refused whatever their role (pitfalls 14, 15)."""
        symmetric = build.NULL if role == "tls" else build.AES_128_CFB
        for private, message in (
            (rsa_private_key("weak", 1024), "1024 bits"),
            (rsa_private_key("weak", 2048, 3), "exponent 3"),
            (roca_private_key("weak"), "ROCA"),
        ):
            area = build.public_area(private.public_key(), ROLES[role], symmetric=symmetric)
            refuse(Enrolment(**{role: area}), f"{role}: .*{message}")

    def test_weak_ak(self):
        """An AK with the ROCA fingerprint is refused (pitfall 15)."""
        ak = build.SoftwareKey(private=roca_private_key("weak"), scheme="rsassa")
        refuse(Enrolment(ak=ak), "ak: .*ROCA")


class TestNames:
    def test_same_key_twice(self):
        """One key in two roles would have to be two kinds of key; refused by name too (N82)."""
        claimed = Enrolment().claimed()
        for role in ("ak", "storage"):
            with pytest.raises(ResidencyUnproven):
                verify_residency(replace(claimed, tls=getattr(claimed, role)), BINDING)

    def test_names_must_differ_whatever_the_attributes(self, monkeypatch):
        """Distinct names are checked by themselves, not only as a consequence of attributes (N82)."""
        name = build.name_of(AK.public)
        monkeypatch.setattr("trustauthority.verification.residency.object_name", lambda _: name)
        refuse(Enrolment(), "the same key")

    def test_ek_as_storage_parent(self):
        """The EK can't be the storage parent: names must differ (N82)."""
        area = ek_area(attributes=EK_ATTRIBUTES | build.NO_DA)
        refuse(Enrolment(ek=area, storage=area), "ek: objectAttributes")

    @pytest.mark.parametrize("role", ["tls", "storage"])
    def test_ak_certified_another_key(self, role):
        """The certification must be of the very key that is shown (N82)."""
        refuse(
            Enrolment(**{f"{role}_fields": {"name": b"\0\x0b" + bytes(32)}}),
            f"{role}: name: the AK certified another key",
        )

    @pytest.mark.parametrize("hierarchy", [0x4000000B, 0x4000000C, 0x40000007])
    @pytest.mark.parametrize("role", ["tls", "storage"])
    def test_key_in_another_hierarchy(self, role, hierarchy):
        """Not under endorsement (Clear would revive old blobs), platform or null (N82)."""
        name = build.name_of(getattr(Enrolment(), role))
        elsewhere = build.qualified(struct.pack(">I", hierarchy), name)
        refuse(
            Enrolment(**{f"{role}_fields": {"qualified_name": elsewhere}}),
            f"{role}: qualifiedName",
        )

    def test_storage_parent_that_is_no_primary(self):
        """A storage key below another one does not change its name with TPM2_Clear (design 6.1)."""
        name = build.name_of(Enrolment().storage)
        child = build.qualified(build.qualified(OWNER, b"\0\x0b" + bytes(32)), name)
        refuse(Enrolment(storage_fields={"qualified_name": child}), "storage: qualifiedName")

    def test_software_key_loaded_from_outside(self):
        """TPM2_LoadExternal: its qualified name is its name, and that is refused (N82)."""
        name = build.name_of(Enrolment().tls)
        refuse(Enrolment(tls_fields={"qualified_name": name}), "tls: qualifiedName")

    def test_ak_of_the_owner_hierarchy(self):
        """An AK that is not a child of the EK is refused (N16; it would obfuscate resetCount)."""
        signer = build.qualified(OWNER, build.name_of(AK.public))
        refuse(Enrolment(tls_fields={"signer": signer}), "tls: qualifiedSigner")
        refuse(Enrolment(storage_fields={"signer": signer}), "storage: qualifiedSigner")

    def test_ak_of_another_tpm(self):
        """An AK below another EK is refused (N16)."""
        claimed = Enrolment().claimed()
        other = decode_public(ek_area(key=rsa_private_key("other ek").public_key()))
        with pytest.raises(ResidencyUnproven, match="qualifiedSigner"):
            verify_residency(replace(claimed, ek=other), BINDING)


class TestCertification:
    @pytest.mark.parametrize(
        "change",
        [
            {"authority_ca_sha256": bytes(32)},
            {"cluster": "west"},
            {"host_label": "node-2"},
            {"challenge": b"another token"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_relayed_enrolment(self, change):
        """An enrolment made for another authority, cluster, name or challenge is refused (N78)."""
        refuse(Enrolment(signed_for=replace(BINDING, **change)), "extraData")

    def test_roles_swapped(self):
        """The certification of one role does not serve for the other (N82)."""
        claimed = Enrolment().claimed()
        swapped = replace(
            claimed,
            tls_certification=claimed.storage_certification,
            storage_certification=claimed.tls_certification,
        )
        with pytest.raises(ResidencyUnproven, match="tls: extraData"):
            verify_residency(swapped, BINDING)

    @pytest.mark.parametrize("role", ["tls", "storage"])
    def test_signed_by_another_key(self, role):
        """Only the AK of this enrolment may certify (N82)."""
        refuse(
            Enrolment(**{f"{role}_fields": {"key": build.SoftwareKey.ecdsa()}}),
            f"{role}: signature of the AK",
        )

    @pytest.mark.parametrize(
        "change", [{"kind": 0x8018}, {"kind": 0x801A}, {"magic": 0x54434700}], ids=str
    )
    def test_structure_that_certifies_nothing(self, change):
        """Wrong magic and other types prove no residency (N82, pitfalls 1, 2)."""
        claimed = Enrolment().claimed()
        body = build.selection({"sha256": (0,)}) + build.sized(bytes(32))
        message = build.attest(body, **change)
        forged = KeyCertification(attest=message, signature=AK.sign(message))
        with pytest.raises(ResidencyUnproven, match="magic or type"):
            verify_residency(replace(claimed, tls_certification=forged), BINDING)

    def test_malformed_certification(self):
        """Bytes that are no structure are malformed, with part and offset (N12)."""
        claimed = Enrolment().claimed()
        cut = replace(claimed.tls_certification, attest=claimed.tls_certification.attest[:-1])
        with pytest.raises(MalformedEvidence):
            verify_residency(replace(claimed, tls_certification=cut), BINDING)

    def test_ca_hash_has_a_fixed_length(self):
        """Every part of extraData has a fixed length, so none can slide into the next."""
        with pytest.raises(ValueError, match="32 bytes"):
            certification_data(
                replace(BINDING, authority_ca_sha256=b"short"),
                decode_public(ek_area()),
                b"name",
                "tls",
            )

    def test_extra_data_is_the_documented_hash(self):
        """The agent computes the same bytes from the documentation alone."""
        ek, name = decode_public(ek_area()), build.name_of(AK.public)
        parts = (b"east", b"node-1", b"challenge token", ek.raw, name, b"tls")
        expected = hashlib.sha256(
            b"trustauthority/enrol/v1\0"
            + BINDING.authority_ca_sha256
            + b"".join(hashlib.sha256(part).digest() for part in parts)
        ).digest()
        assert certification_data(BINDING, ek, name, "tls") == expected
        assert certification_data(BINDING, replace(ek, raw=b""), name, "tls") == expected


def high_range(name_alg: int, key, cipher: bytes) -> bytes:
    """TPMT_PUBLIC of an EK with policy B; its digest is the template's own."""
    template = next(t for t in EK_TEMPLATES if t.name_alg.tpm_id == name_alg and t.name != "L-1")
    policy = next(
        t.auth_policy
        for t in EK_TEMPLATES
        if t.name.startswith("H") and t.name_alg == template.name_alg
    )
    return ek_area(
        key=key, attributes=HIGH_RANGE, name_alg=name_alg, symmetric=cipher, policy=policy
    )


class TestEkTemplates:
    @pytest.mark.parametrize(
        ("name", "area"),
        [
            ("L-1", ek_area()),
            ("L-2", ek_area(key=TLS_KEY.public_key())),
            ("H-1", high_range(0x000B, EK_KEY.public_key(), build.AES_128_CFB)),
            ("H-2", high_range(0x000B, TLS_KEY.public_key(), build.AES_128_CFB)),
            (
                "H-3",
                high_range(
                    0x000C, ec.generate_private_key(ec.SECP384R1()).public_key(), build.AES_256_CFB
                ),
            ),
            (
                "H-4",
                high_range(
                    0x000D, ec.generate_private_key(ec.SECP521R1()).public_key(), build.AES_256_CFB
                ),
            ),
            ("H-6", high_range(0x000C, build.rsa_key(3072).public_key(), build.AES_256_CFB)),
        ],
        ids=["L-1", "L-2", "H-1", "H-2", "H-3", "H-4", "H-6"],
    )
    def test_templates_of_both_ranges(self, name, area):
        """Low and high range templates are recognised (pitfall 23)."""
        assert check_endorsement_key(decode_public(area)).name == name

    def test_policy_a_is_computed_by_the_oracle(self):
        """Policy A is PolicySecret(TPM_RH_ENDORSEMENT), computed here from its definition."""
        assert EK_TEMPLATES[0].auth_policy == build.POLICY_A

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"attributes": EK_ATTRIBUTES & ~build.RESTRICTED}, "objectAttributes is not that"),
            ({"attributes": EK_ATTRIBUTES | build.SIGN}, "objectAttributes"),
            ({"attributes": EK_ATTRIBUTES | build.USER_WITH_AUTH}, "objectAttributes"),
            ({"attributes": EK_ATTRIBUTES & ~build.FIXED_TPM}, "objectAttributes"),
            ({"name_alg": 0x000C}, "nameAlg is not that"),
            ({"policy": b""}, "authPolicy is not that"),
            ({"policy": bytes(32)}, "authPolicy"),
            ({"symmetric": build.AES_256_CFB}, "symmetric is not that"),
            ({"symmetric": build.NULL}, "symmetric"),
            ({"scheme": struct.pack(">HH", 0x0017, 0x000B)}, "scheme is not that"),
            ({"key": rsa_private_key("weak", 1024).public_key()}, "no accepted template"),
            ({"key": rsa_private_key("weak", 2041).public_key()}, "no accepted template"),
            ({"key": roca_private_key("weak").public_key()}, "ROCA"),
            ({"key": rsa_private_key("weak", 2048, 3).public_key()}, "exponent 3"),
        ],
    )
    def test_what_no_template_makes(self, change, message):
        """A key outside of the templates could be one that the host controls (pitfall 22)."""
        refuse(Enrolment(ek=ek_area(**change)), f"ek: .*{message}")

    def test_kdf_of_an_ecc_ek_is_open(self):
        """An ECC template leaves the key derivation open."""
        area = ek_area(key=TLS_KEY.public_key())
        offset = area.index(struct.pack(">HH", 0x0003, 0x0010) + b"\0\x20") + 2
        changed = area[:offset] + struct.pack(">HH", 0x0020, 0x000B) + area[offset + 2 :]
        with pytest.raises(ResidencyUnproven, match="kdf"):
            check_endorsement_key(decode_public(changed))

    def test_sealed_object_is_no_ek(self):
        """A keyed hash is no EK."""
        raw = struct.pack(">HHI", 0x0008, 0x000B, EK_ATTRIBUTES) + build.sized(b"") + build.NULL
        public = decode_public(raw + build.sized(b"u" * 32))
        assert public.type == TpmAlgorithm.KEYEDHASH
        with pytest.raises(ResidencyUnproven, match="no accepted template"):
            check_endorsement_key(public)
