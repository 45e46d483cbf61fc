"""Enrolment end to end: which TPMs become hosts, under which name, and which never do."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from support import ek_certificates, tpm_structures
from support.simulated_authority import BY, CA_SHA256, SimulatedAuthority
from support.simulated_host import SimulatedHost, SimulatedTpm
from support.tpm_structures import DECRYPT, RESTRICTED, SIGN, name_of

from hostagent.sealed import TpmError
from trustauthority.errors import (
    AlreadyExists,
    ChainUntrusted,
    ChallengeAlreadyUsed,
    ChallengeExpired,
    ChallengeMismatch,
    Conflict,
    FailedPrecondition,
    HostNotAdmitted,
    NotFound,
    RateLimited,
    ResidencyUnproven,
)
from trustauthority.model.host import Admission
from trustauthority.services.enrolment import MAX_PENDING_PER_PEER, PendingCredential

AK, TLS, STORAGE = (
    tpm_structures.AK_ATTRIBUTES,
    tpm_structures.TLS_ATTRIBUTES,
    tpm_structures.STORAGE_ATTRIBUTES,
)
FIXED_TPM, NO_DA = tpm_structures.FIXED_TPM, tpm_structures.NO_DA


async def challenge_of(authority: SimulatedAuthority, host: SimulatedHost) -> bytes:
    """A challenge for this host's EK."""
    token, _ = await authority.enrolment.challenge(
        cluster=host.cluster, ek_public=host.tpm.ek_public
    )
    return token


async def pending_of(authority: SimulatedAuthority, host: SimulatedHost) -> PendingCredential:
    """The credential of a claim."""
    claim = host.claim(await challenge_of(authority, host))
    return await authority.enrolment.enrol(claim, peer=host.name)


async def nothing_waits(authority: SimulatedAuthority) -> bool:
    """Whether no host came into being."""
    return await authority.hosts.page(cluster="", after="", limit=10) == []


class TestIdentity:
    async def test_a_host_of_ours_is_admitted_under_its_name(self, authority):
        """A listed machine is a host after three calls, with an audit entry (I-E)."""
        host = authority.host("esx-1")
        await authority.list_machine(host)
        activated = await authority.enrol(host)
        assert activated.host.admission is Admission.ADMITTED
        assert activated.host.reserved_name == "esx-1"
        assert b"BEGIN CERTIFICATE" in activated.certificate_chain
        entry = await authority.last("host.enrol")
        assert (entry["decision"], entry["subject"]) == ("done", host.host_id)

    async def test_other_keys_of_an_enrolled_tpm_overwrite_nothing(self, authority):
        """Rule 30, N01: the row of an EK stays byte-identical, the attempt is refused and audited."""
        host = await authority.enrolled("esx-1")
        before = await authority.record(host)
        cleared = authority.host("esx-1", tpm=replace(host.tpm, generation=2))
        with pytest.raises(AlreadyExists):
            await authority.enrol(cleared)
        assert await authority.record(host) == before
        entry = await authority.last("host.reactivate")
        assert (entry["decision"], entry["reason"]) == ("refused", "ALREADY_EXISTS")

    async def test_the_same_tpm_and_keys_come_back(self, authority):
        """N93: after its certificate expired a host is certified again and nothing else changed."""
        host = await authority.enrolled("esx-1")
        before = await authority.record(host)
        authority.pass_ms(72 * 3_600_000, host)
        again = await authority.enrol(host)
        assert again.certificate_expires_ms > authority.clock.now_ms()
        assert await authority.record(host) == before
        assert (await authority.last("host.reactivate"))["decision"] == "done"

    @pytest.mark.parametrize("role", ["tls", "storage"])
    async def test_one_key_changed_is_another_host(self, authority, role):
        """N93: the same EK and AK with one other key are refused."""
        host = await authority.enrolled("esx-1")
        before = await authority.record(host)
        other = SimulatedTpm("another")
        area = tpm_structures.public_area(
            other.key(role).public_key(),
            TLS if role == "tls" else STORAGE,
            symmetric=tpm_structures.NULL if role == "tls" else tpm_structures.AES_128_CFB,
        )
        setattr(host, f"{role}_area", area)
        with pytest.raises(AlreadyExists):
            await authority.enrol(host)
        assert await authority.record(host) == before

    async def test_a_removed_host_does_not_come_back_by_itself(self, authority):
        """N01: what an operator removed stays removed, whoever activates."""
        host = await authority.enrolled("esx-1")
        await authority.hosts.remove(host.host_id, by=BY, dry_run=False)
        with pytest.raises(AlreadyExists):
            await authority.enrol(host)
        assert (await authority.record(host)).admission is Admission.REMOVED

    async def test_nobody_squats_a_name(self, authority):
        """N77: who enrols first under a name only wishes for it; the listed machine gets it."""
        squatter = authority.host("esx-1", tpm=SimulatedTpm("bench"))
        await authority.enrol(squatter)
        ours = await authority.enrolled("esx-1")
        assert (await authority.record(squatter)).reserved_name is None
        assert (await authority.record(ours)).reserved_name == "esx-1"

    async def test_a_listed_machine_gets_no_name_that_is_taken(self, authority):
        """N77: a second machine under an admitted name waits for an operator."""
        await authority.enrolled("esx-1")
        second = authority.host("esx-1", tpm=SimulatedTpm("second"))
        await authority.list_machine(second)
        activated = await authority.enrol(second)
        assert activated.host.admission is Admission.WAITING
        with pytest.raises(AlreadyExists):
            await authority.hosts.admit(
                second.host_id,
                approval_sha256=activated.host.approval_sha256,
                by=BY,
                dry_run=False,
            )

    async def test_the_second_ek_of_a_tpm_is_no_second_host(self, authority):
        """N77: an anchor admits one kind of EK, so the RSA EK beside the ECC one is refused."""
        host = await authority.enrolled("esx-1")
        rsa_ek = tpm_structures.public_area(
            ek_certificates.ek_key().public_key(),
            0x000300B2,
            symmetric=tpm_structures.AES_128_CFB,
            policy=tpm_structures.POLICY_A,
        )
        token, _ = await authority.enrolment.challenge(cluster="prod", ek_public=rsa_ek)
        claim = replace(
            host.claim(token), ek_public=rsa_ek, ek_certificate=ek_certificates.endorsement()
        )
        with pytest.raises(ChainUntrusted, match="no anchor for rsa"):
            await authority.enrolment.enrol(claim, peer="esx-1")
        assert len(await authority.hosts.page(cluster="", after="", limit=10)) == 1


class TestProof:
    async def test_a_wrong_secret_uses_the_row_up(self, authority):
        """Rule 21, N05: one attempt per credential; a wrong one leaves an audit entry and no host."""
        host = authority.host("esx-1")
        pending = await pending_of(authority, host)
        with pytest.raises(ResidencyUnproven):
            await authority.enrolment.activate(pending.pending_id, bytes(32))
        with pytest.raises(NotFound):
            await authority.enrolment.activate(pending.pending_id, host.proof(pending))
        entry = await authority.last("host.enrol")
        assert (entry["decision"], entry["reason"]) == ("refused", "RESIDENCY_UNPROVEN")
        assert await nothing_waits(authority)

    @pytest.mark.parametrize("proof", [b"", bytes(31), bytes(33), bytes(64)])
    async def test_a_secret_is_not_omitted(self, authority, proof):
        """N05: no proof, or one of another length, proves nothing."""
        pending = await pending_of(authority, authority.host("esx-1"))
        with pytest.raises(ResidencyUnproven):
            await authority.enrolment.activate(pending.pending_id, proof)
        assert await nothing_waits(authority)

    async def test_a_secret_is_not_replayed(self, authority):
        """N05: the proof of one row is none for the next row of the same host."""
        host = authority.host("esx-1")
        first = host.proof(await pending_of(authority, host))
        second = await pending_of(authority, host)
        with pytest.raises(ResidencyUnproven):
            await authority.enrolment.activate(second.pending_id, first)
        assert await nothing_waits(authority)

    async def test_a_software_ak_opens_no_credential(self, authority):
        """N05: an AK that is in no TPM certifies what it likes, but the credential names it."""
        host = authority.host("esx-1")
        real = host.ak
        host.ak = tpm_structures.SoftwareKey.ecdsa()
        pending = await pending_of(authority, host)
        host.ak = real  # the only AK that the TPM would activate for
        with pytest.raises(TpmError):
            host.proof(pending)

    async def test_another_tpm_opens_no_credential(self, authority):
        """N05: the credential is for the EK of the claim."""
        pending = await pending_of(authority, authority.host("esx-1"))
        with pytest.raises(TpmError):
            authority.host("esx-2").proof(pending)

    async def test_a_changed_pending_row_is_not_what_was_answered(self, authority):
        """N78: rewriting the row between claim and proof issues nothing, even for a good secret."""
        host = authority.host("esx-1")
        pending = await pending_of(authority, host)
        await authority.write_sql(
            "UPDATE pending_enrolment SET document = replace(document, 'esx-1', 'esx-9')"
        )
        with pytest.raises(ResidencyUnproven):
            await authority.enrolment.activate(pending.pending_id, host.proof(pending))
        assert await nothing_waits(authority)

    async def test_a_credential_expires(self, authority):
        """A pending row lives a minute; later its proof is too late."""
        host = authority.host("esx-1")
        pending = await pending_of(authority, host)
        authority.pass_ms(pending.expires_in_ms)
        with pytest.raises(NotFound):
            await authority.enrolment.activate(pending.pending_id, host.proof(pending))

    async def test_one_peer_does_not_fill_the_store(self, authority):
        """N43: pending rows of a peer are counted; the next one is told to wait."""
        host = authority.host("esx-1")
        for _ in range(MAX_PENDING_PER_PEER):
            await pending_of(authority, host)
        with pytest.raises(RateLimited):
            await pending_of(authority, host)
        await pending_of(authority, authority.host("esx-2"))


class TestChallenge:
    async def test_lives_a_minute(self, authority):
        """N08: one second before its end it counts, one second after it does not."""
        host = authority.host("esx-1")
        early, late = await challenge_of(authority, host), await challenge_of(authority, host)
        authority.pass_ms(59_000)
        await authority.enrolment.enrol(host.claim(early), peer="p")
        authority.pass_ms(2_000)
        with pytest.raises(ChallengeExpired):
            await authority.enrolment.enrol(host.claim(late), peer="p")

    async def test_is_used_once(self, authority):
        """N06: a second claim over the same challenge is refused."""
        host = authority.host("esx-1")
        token = await challenge_of(authority, host)
        await authority.enrolment.enrol(host.claim(token), peer="p")
        with pytest.raises(ChallengeAlreadyUsed):
            await authority.enrolment.enrol(host.claim(token), peer="p")

    async def test_is_for_one_ek_cluster_and_purpose(self, authority):
        """N10: of another EK, another cluster, or for attestation: refused."""
        host, other = authority.host("esx-1"), authority.host("esx-2")
        await authority.add_cluster("lab")
        enrolled = await authority.enrolled("esx-3")
        tokens = [
            await challenge_of(authority, other),
            (await authority.enrolment.challenge(cluster="lab", ek_public=host.tpm.ek_public))[0],
            (await authority.invite(enrolled)).challenge,
        ]
        for token in tokens:
            with pytest.raises(ChallengeMismatch):
                await authority.enrolment.enrol(host.claim(token), peer="p")


def _other_name(host: SimulatedHost) -> None:
    host.name = "esx-2"


def _other_cluster(host: SimulatedHost) -> None:
    host.cluster = "lab"


def _other_authority(host: SimulatedHost) -> None:
    host.authority_ca_sha256 = bytes(32)


class TestRelay:
    @pytest.mark.parametrize("elsewhere", [_other_name, _other_cluster, _other_authority])
    async def test_what_was_certified_for_elsewhere_is_refused(self, authority, elsewhere):
        """N78: certifications for another authority, cluster or name are worthless here."""
        await authority.add_cluster("lab")
        host = authority.host("esx-1")
        claim = host.claim(await challenge_of(authority, host))
        elsewhere(host)
        relayed = replace(
            claim,
            tls_certification=host.certify("tls", claim.challenge),
            storage_certification=host.certify("storage", claim.challenge),
        )
        with pytest.raises(ResidencyUnproven, match="extraData"):
            await authority.enrolment.enrol(relayed, peer="p")
        assert await nothing_waits(authority)

    async def test_certifications_of_an_older_challenge_are_refused(self, authority):
        """N78: a recorded enrolment is not an answer to a new challenge."""
        host = authority.host("esx-1")
        old = host.claim(await challenge_of(authority, host))
        replayed = replace(old, challenge=await challenge_of(authority, host))
        with pytest.raises(ResidencyUnproven, match="extraData"):
            await authority.enrolment.enrol(replayed, peer="p")


Lie = Callable[[SimulatedHost], None]
KEYS: dict[str, tuple[Lie, str]] = {
    "ak-unrestricted": (lambda h: h.set_attributes("ak", AK & ~RESTRICTED), "ak: restricted"),
    "ak-not-fixed": (lambda h: h.set_attributes("ak", AK & ~FIXED_TPM), "ak: fixedTPM"),
    "ak-decrypts": (lambda h: h.set_attributes("ak", AK | DECRYPT), "ak: decrypt"),
    "tls-decrypts": (lambda h: h.set_attributes("tls", TLS | DECRYPT), "tls: decrypt is set"),
    "tls-restricted": (lambda h: h.set_attributes("tls", TLS | RESTRICTED), "tls: restricted"),
    "tls-no-sign": (lambda h: h.set_attributes("tls", TLS & ~SIGN), "tls: sign"),
    "tls-locks-out": (lambda h: h.set_attributes("tls", TLS & ~NO_DA), "tls: noDA"),
    "storage-signs": (lambda h: h.set_attributes("storage", STORAGE | SIGN), "storage: sign"),
    "storage-software": (
        lambda h: h.set_attributes("storage", STORAGE & ~FIXED_TPM),
        "storage: fixedTPM",
    ),
    "storage-locks-out": (lambda h: h.set_attributes("storage", STORAGE & ~NO_DA), "storage: noDA"),
    "tls-elsewhere": (lambda h: h.claim_qualified_name("tls"), "tls: qualifiedName"),
    "storage-elsewhere": (lambda h: h.claim_qualified_name("storage"), "storage: qualifiedName"),
    "ak-not-under-the-ek": (lambda h: setattr(h.lies, "signer", bytes(34)), "qualifiedSigner"),
    "another-ak-signed": (lambda h: h.use_ak("elsewhere"), "signature of the AK"),
    "certified-another-key": (
        lambda h: h.lies.certified_name.update(tls=name_of(h.storage_area)),
        "tls: name",
    ),
    "same-key-twice": (lambda h: setattr(h, "tls_area", h.ak.public), "restricted is set"),
}


@pytest.mark.parametrize("name", KEYS)
async def test_a_key_that_is_not_as_it_must_be_is_refused(authority, name):
    """N16, N82: each attribute, name and place of the three keys; the refusal names it."""
    lie, message = KEYS[name]
    host = authority.host("esx-1")
    lie(host)
    with pytest.raises(ResidencyUnproven, match=message):
        await pending_of(authority, host)
    assert await nothing_waits(authority)


async def test_a_tpm_of_another_vendor_is_refused(authority):
    """T3: no chain to an anchor of the cluster, no enrolment."""
    host = authority.host("esx-1")
    claim = host.claim(await challenge_of(authority, host))
    with pytest.raises(ChainUntrusted):
        await authority.enrolment.enrol(replace(claim, ek_intermediates=()), peer="p")
    stolen = replace(claim, ek_certificate=authority.host("esx-2").tpm.ek_certificate)
    with pytest.raises(Exception, match="EK") as refused:
        await authority.enrolment.enrol(stolen, peer="p")
    assert refused.value.reason.startswith("ENDORSEMENT")


class TestAdmission:
    async def test_a_bench_tpm_is_attested_and_gets_no_key(self, authority):
        """N76: a genuine TPM with a good log passes; it is not one of ours and holds nothing."""
        await authority.trusted("esx-1")
        bench = authority.host("bench")
        activated = await authority.enrol(bench)
        assert activated.host.admission is Admission.WAITING
        assert (await authority.attest(bench)).verdict.passed
        await authority.add_vm(any_host=True)
        await authority.intend(bench)
        with pytest.raises(HostNotAdmitted):
            await authority.request(bench)
        assert authority.room.answers == []

    async def test_is_of_what_was_looked_at(self, authority):
        """I-E: admission names the hash of name and keys; another hash admits nobody."""
        bench = authority.host("bench")
        approval = (await authority.enrol(bench)).host.approval_sha256
        with pytest.raises(Conflict):
            await authority.hosts.admit(
                bench.host_id, approval_sha256="0" * 64, by=BY, dry_run=False
            )
        dry = await authority.hosts.admit(
            bench.host_id, approval_sha256=approval, by=BY, dry_run=True
        )
        assert dry.host.admission is Admission.WAITING
        view = await authority.hosts.admit(
            bench.host_id, approval_sha256=approval, by=BY, dry_run=False
        )
        assert view.host.admission is Admission.ADMITTED
        assert (await authority.last("host.admit"))["details"]["approval"] == approval
        with pytest.raises(FailedPrecondition):
            await authority.hosts.admit(
                bench.host_id, approval_sha256=approval, by=BY, dry_run=False
            )

    async def test_inventory_may_not_be_enough(self, authority):
        """A cluster can ask for a person: then listed machines wait as well."""
        await authority.apply_policy(
            'name = "careful"\n[endorsement]\nadmit_by_inventory = false\n'
        )
        host = authority.host("esx-1")
        await authority.list_machine(host)
        assert (await authority.enrol(host)).host.admission is Admission.WAITING

    async def test_inventory_names_its_machine(self, authority):
        """N77: a machine listed under a name is not admitted under another one."""
        host = authority.host("esx-7")
        await authority.list_machine(host, name="esx-1")
        assert (await authority.enrol(host)).host.admission is Admission.WAITING

    async def test_a_new_mainboard_takes_a_name_over(self, authority):
        """Rule 31, S5: re-binding is an approved operation; the old TPM is out, its row stays."""
        await authority.trusted("esx-1")
        old = authority.host("esx-1")
        old.host_id = (await authority.hosts.get("esx-1"))[0].host.host_id
        new = authority.host("esx-1", tpm=SimulatedTpm("new-board"))
        approval = (await authority.enrol(new)).host.approval_sha256
        with pytest.raises(Conflict):
            await authority.hosts.rebind(
                "esx-1", new.host_id, approval_sha256="0" * 64, by=BY, dry_run=False
            )
        view = await authority.hosts.rebind(
            "esx-1", new.host_id, approval_sha256=approval, by=BY, dry_run=False
        )
        assert (view.host.host_id, view.host.reserved_name) == (new.host_id, "esx-1")
        gone = await authority.record(old)
        assert (gone.admission, gone.reserved_name) == (Admission.REMOVED, None)
        assert (await authority.last("host.rebind"))["details"]["replaced"] == old.host_id
        await authority.add_vm(any_host=True)
        with pytest.raises(HostNotAdmitted):
            await authority.request(old)

    async def test_every_refused_claim_leaves_no_row(self, authority):
        """N43: a claim that is refused writes nothing, so that strangers can't fill the store."""
        size = len(await authority.log())
        host = authority.host("esx-1")
        host.lies.signer = bytes(34)
        for _ in range(3):
            with pytest.raises(ResidencyUnproven):
                await pending_of(authority, host)
        assert len(await authority.log()) == size
        assert authority.secrets.authority_ca_sha256 == CA_SHA256
