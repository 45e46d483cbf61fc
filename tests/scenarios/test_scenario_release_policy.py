"""A VM's own release policy: preconditions of its grant, changed by its owner only."""

import asyncio
import json
from base64 import b64encode
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.simulated_authority import BY, VM, SimulatedAuthority

from trustauthority.errors import (
    KeyNotPermitted,
    NotFound,
    OwnerSignatureInvalid,
    PolicyInvalid,
    QuoteTooOld,
    TrustAuthorityError,
)
from trustauthority.keyrelease.releasepolicy import (
    LABEL,
    decode_release_policy,
    encode_release_policy,
)

OWNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OWNER_KEY = b64encode(
    OWNER.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
).decode()


def document(version: int = 1, **limits: Any) -> bytes:
    made = {"format": "ta-release-policy-v1", "vm": VM, "version": version} | limits
    return encode_release_policy(decode_release_policy(json.dumps(made).encode()))


async def put(authority: SimulatedAuthority, content: bytes, signature: bytes = b"") -> None:
    await authority.release_policies.put(VM, content, signature, by=BY)


LIMITS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"clusters": ["prod"]}, {"clusters": ["lab"]}, "release-policy-cluster"),
    ({"hostClasses": ["r650"]}, {"hostClasses": ["r640"]}, "release-policy-class"),
    ({"regions": ["eu"]}, {"regions": ["e", "eu1"]}, "release-policy-region"),
    (
        {"variants": {"kernel": ["other", "golden"]}},
        {"variants": {"kernel": ["golden2"]}},
        "release-policy-variants",
    ),
    ({"hours": ["daily 00-24"]}, {"hours": []}, ""),
    ({"maxEvidenceAgeMs": 1_000}, {}, ""),
]


class TestRelease:
    @pytest.mark.parametrize(("met", "unmet", "rule"), LIMITS)
    async def test_each_limit(self, authority, met, unmet, rule):
        """A host that meets the limit gets the key; one that does not is refused, and told which."""
        host = authority.host("esx-1")
        await authority.list_machine(host, host_class="r650")
        await authority.enrol(host)
        await authority.attest(host)
        await authority.approve_baseline(host)
        assert (await authority.attest(host)).verdict.passed
        await authority.release_policies.set_region("esx-1", "eu", by=BY)
        await authority.add_vm(any_host=True)
        await put(authority, document(1, **met))
        released = await authority.request(host)
        assert authority.open(host, released) == authority.vm_key()
        if rule:
            await put(authority, document(2, **unmet))
            orders = len(authority.room.orders)
            with pytest.raises(KeyNotPermitted):
                await authority.request(host)
            assert (await authority.last("key.request"))["reason"] == rule
            (answer,) = await authority.placement.check([(VM, "esx-1")])
            assert [each.rule for each in answer.unmet] == [rule]
            assert len(authority.room.orders) == orders

    async def test_hours(self, authority):
        """Outside of the hours nothing is released, whoever asks; a lease that runs goes on."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        now = authority.clock.now_ms() // 3_600_000 + 72
        day, hour = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[now % 168 // 24], now % 24
        await put(authority, document(1, hours=[f"{day} {hour:02}-{hour + 1:02}"]))
        epoch = (await authority.request(host)).grant_epoch
        authority.pass_ms(3_600_000, host)
        await authority.attest(host)
        with pytest.raises(KeyNotPermitted):
            await authority.request(host)
        await authority.keys.renew(
            await authority.record(host), vm=VM, grant_epoch=epoch, request_id="r" * 16
        )

    async def test_old_evidence_needs_a_new_quote(self, authority):
        """The host attests and repeats; younger evidence than the policy says is enough."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await put(authority, document(1, maxEvidenceAgeMs=5_000))
        authority.pass_ms(5_001, host)
        with pytest.raises(QuoteTooOld):
            await authority.request(host)
        await authority.attest(host)
        assert authority.open(host, await authority.request(host)) == authority.vm_key()

    async def test_a_quote_that_was_held_back_is_as_old_as_its_challenge(self, authority):
        """The arrival of evidence says nothing about when the host quoted: it may have changed since."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await put(authority, document(1, maxEvidenceAgeMs=5_000))
        rode_along = (await authority.attest(host)).invitation
        held_back = host.evidence(rode_along)
        authority.pass_ms(5_001, host)
        late = await authority.attestation.attest(await authority.record(host), held_back)
        assert late.verdict.passed
        with pytest.raises(QuoteTooOld):
            await authority.request(host)
        await authority.attest(host)
        assert authority.open(host, await authority.request(host)) == authority.vm_key()

    async def test_narrowed_while_the_kms_answers(self, authority):
        """N90 for policies: transaction 2 asks again."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        gate = authority.room.hold()
        waiting = asyncio.create_task(authority.request(host))
        await gate.reached.wait()
        await put(authority, document(1, regions=["mars"]))
        gate.open()
        with pytest.raises(KeyNotPermitted):
            await waiting

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE vm_release_policy SET regions = ''",
            "UPDATE vm_release_policy SET version = 9",
            "UPDATE vm SET policy_version = 0",
            "DELETE FROM vm_release_policy",
            "UPDATE vm_release_policy SET document = x'00'",
        ],
    )
    async def test_tampered_columns(self, authority, statement):
        """Whoever writes the columns behind our back, without the document, gets no key."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await put(authority, document(1, regions=["mars"]))
        await authority.write_sql(statement)
        with pytest.raises(TrustAuthorityError):
            await authority.request(host)
        assert authority.room.orders == []


class TestOwner:
    async def test_only_the_owner_changes_it(self, authority):
        """Once a version names an owner's key, the next one needs the owner; so does taking the key out."""
        await authority.add_vm()
        await put(authority, document(1, ownerKey=OWNER_KEY, regions=["eu"]))
        for content in (document(2), document(2, ownerKey=OWNER_KEY)):
            for signature in (b"", b"x" * 64, OWNER.sign(content), OWNER.sign(LABEL + document(3))):
                with pytest.raises(OwnerSignatureInvalid):
                    await put(authority, content, signature)
        assert (await authority.release_policies.get(VM)).entry.record.version == 1
        content = document(2, ownerKey=OWNER_KEY)
        await put(authority, content, OWNER.sign(LABEL + content))
        last = document(3)
        await put(authority, last, OWNER.sign(LABEL + last))
        await put(authority, document(4))
        signed = [entry["details"]["signed"] for entry in await authority.log("vm.release-policy")]
        assert signed == [0, 1, 1, 0]

    async def test_versions_only_grow(self, authority):
        """An older version that the owner once signed is not put back."""
        await authority.add_vm()
        await put(authority, document(1, ownerKey=OWNER_KEY))
        newer, older = (document(v, ownerKey=OWNER_KEY) for v in (5, 4))
        await put(authority, newer, OWNER.sign(LABEL + newer))
        for content in (older, newer):
            with pytest.raises(PolicyInvalid, match="not newer than 5"):
                await put(authority, content, OWNER.sign(LABEL + content))

    async def test_rivals(self, authority):
        """Two versions at once: one is in force, and the log knows no other."""
        await authority.add_vm()
        outcomes = await asyncio.gather(
            *(put(authority, document(1, regions=[f"r{n}"])) for n in range(6)),
            return_exceptions=True,
        )
        assert sum(each is None for each in outcomes) == 1
        assert len(await authority.log("vm.release-policy")) == 1

    async def test_refused(self, authority):
        """Another VM's policy, no VM, a signature without an owner; a dry run changes nothing."""
        await authority.add_vm()
        await authority.add_vm("other")
        with pytest.raises(PolicyInvalid, match="payroll"):
            await authority.release_policies.put("other", document(), b"", by=BY)
        with pytest.raises(NotFound):
            await authority.release_policies.get("ghost")
        with pytest.raises(OwnerSignatureInvalid, match="no owner"):
            await put(authority, document(), b"x")
        await authority.release_policies.put(VM, document(), b"", by=BY, dry_run=True)
        assert (await authority.release_policies.get(VM)).entry is None
