"""What was taken back counts no more: revocation lists, the deny list, flawed and older firmware."""

import hashlib
from dataclasses import replace

import pytest
from support import ek_certificates
from support.deterministic_keys import rsa_private_key
from support.simulated_authority import BY, SimulatedAuthority
from support.simulated_host import SimulatedHost

from trustauthority.errors import (
    AlreadyExists,
    EkCertificateRevoked,
    EndorsementRejected,
    MalformedEvidence,
    NotFound,
    PolicyInvalid,
)
from trustauthority.model.verdict import Check, CheckState, Verdict
from trustauthority.services import trustlists
from trustauthority.services.trustlists import TrustListService

FLAWED = 0x0007_0028_0000_0000
"""7.40, which CVE-2017-15361 lists for this maker."""


def crl(*hosts: SimulatedHost, **changes: object) -> bytes:
    """A list of the EK CA that takes back these hosts' certificates."""
    serials = [host.tpm.certificate_serial for host in hosts]
    fields: dict[str, object] = {
        "signer": ek_certificates.ca_key(),
        "issuer": ek_certificates.CA_NAME,
        "this_update": b"230101000000Z",
    }
    return ek_certificates.build_crl(**(fields | {"serials": serials} | changes))


def check_of(verdict: Verdict, check_id: str) -> Check:
    """The check with this id, anywhere in the tree."""
    todo = list(verdict.checks)
    while todo:
        check = todo.pop()
        if check.id == check_id:
            return check
        todo += check.children
    raise LookupError(check_id)


async def verdict_on(authority: SimulatedAuthority, host: SimulatedHost) -> Verdict:
    return (await authority.attest(host)).verdict


@pytest.fixture
def lists(authority: SimulatedAuthority) -> TrustListService:
    return TrustListService(authority.store)


async def add(lists: TrustListService, document: bytes) -> str:
    entry = await lists.add("prod", document, by=BY, dry_run=False)
    return entry.list_id


class TestRevocationLists:
    async def test_a_tpm_that_its_maker_took_back_fails_at_once(self, authority, lists):
        """Rule 29: an enrolled host loses its standing with the list, and fails when it attests."""
        bad, good = await authority.trusted("esx-1", "esx-2")
        await add(lists, crl(bad))
        assert await authority.standing(bad) == await authority.standing(good) == "unknown"
        verdict = await verdict_on(authority, bad)
        check = check_of(verdict, "endorsement")
        assert (verdict.passed, check.state) == (False, CheckState.FAILED)
        assert "revoked by its issuer" in check.detail
        assert (await verdict_on(authority, good)).passed

    async def test_it_can_not_enrol_either(self, authority, lists):
        """Rule 29: no identity for a certificate that was taken back."""
        host = authority.host("esx-1")
        await add(lists, crl(host))
        with pytest.raises(EkCertificateRevoked):
            await authority.enrol(host)

    async def test_a_ca_that_was_taken_back_takes_its_tpms_along(self, authority, lists):
        """Each CA of the chain is looked up with its own issuer."""
        (host,) = await authority.trusted("esx-1")
        root = {"signer": ek_certificates.root_key(), "issuer": ek_certificates.ROOT_NAME}
        await add(lists, crl(**root, serials=[2]))
        assert not (await verdict_on(authority, host)).passed

    async def test_removed_it_counts_no_more_and_says_so(self, authority, lists):
        """A list that was wrong can go; both steps stand in the audit log."""
        (host,) = await authority.trusted("esx-1")
        list_id = await add(lists, crl(host))
        assert not (await verdict_on(authority, host)).passed
        await lists.remove("prod", list_id, by=BY)
        assert (await verdict_on(authority, host)).passed
        for operation in ("crl.add", "crl.remove"):
            assert (await authority.last(operation))["subject"] == "prod"
        with pytest.raises(NotFound):
            await lists.remove("prod", list_id, by=BY)

    async def test_a_newer_list_replaces_an_older_one_only(self, authority, lists):
        """Nobody brings back a TPM by handing in last year's list."""
        (host,) = await authority.trusted("esx-1")
        newer = crl(host, this_update=b"231001000000Z")
        await add(lists, crl(this_update=b"230601000000Z"))
        await add(lists, newer)
        assert [entry.revoked for entry in await lists.entries("prod")] == [1]
        for stale in (crl(this_update=b"230101000000Z"), crl(this_update=b"231001000000Z"), newer):
            with pytest.raises(AlreadyExists):
                await add(lists, stale)
        assert not (await verdict_on(authority, host)).passed

    @pytest.mark.parametrize(
        ("document", "error"),
        [
            (b"", MalformedEvidence),
            (b"not a list", MalformedEvidence),
            (crl()[:-1], MalformedEvidence),
            (crl() + b"\0", MalformedEvidence),
            (crl(signer=rsa_private_key("ekcerts/other")), EndorsementRejected),
            (crl(algorithm_id=ek_certificates.SHA1_RSA), EndorsementRejected),
        ],
    )
    async def test_what_is_no_list_of_that_ca_changes_nothing(
        self, authority, lists, document, error
    ):
        """A forged list would fail a whole fleet: it is refused when it comes in."""
        (host,) = await authority.trusted("esx-1")
        with pytest.raises(error):
            await add(lists, document)
        assert await authority.standing(host) == "passed"
        assert await lists.entries("prod") == []

    async def test_a_trial_changes_nothing(self, authority, lists):
        """--dry-run says what would be, and keeps every verdict."""
        (host,) = await authority.trusted("esx-1")
        entry = await lists.add("prod", crl(host), by=BY, dry_run=True)
        assert entry.revoked == 1
        assert await authority.standing(host) == "passed"
        assert await lists.entries("prod") == []

    async def test_there_is_a_cluster_or_a_refusal(self, authority, lists):
        """A typing error is no list for nobody."""
        with pytest.raises(NotFound):
            await lists.add("prood", crl(), by=BY, dry_run=False)

    async def test_a_list_of_one_cluster_is_of_that_one(self, authority, lists):
        """Clusters don't share what they go by."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_cluster("other")
        await lists.add("other", crl(host), by=BY, dry_run=False)
        assert (await verdict_on(authority, host)).passed

    async def test_a_policy_may_require_them(self, authority, lists):
        """Without a list that is in date for each CA nothing passes; time itself ends it (L4)."""
        (host,) = await authority.trusted("esx-1")
        await authority.apply_policy('name = "p"\n[endorsement]\nrequire_crl = true\n')
        assert "no CRL of" in check_of(await verdict_on(authority, host), "endorsement").detail
        root = {"signer": ek_certificates.root_key(), "issuer": ek_certificates.ROOT_NAME}
        await add(lists, crl())
        await add(lists, crl(**root))
        verdict = await verdict_on(authority, host)
        assert check_of(verdict, "endorsement").detail == ""
        assert verdict.passed
        day = 24 * 3_600_000
        authority.pass_ms(30 * 365 * day, host)
        assert "no CRL of" in check_of(await verdict_on(authority, host), "endorsement").detail

    async def test_what_can_not_be_looked_at_is_no_approval(self, authority, lists, monkeypatch):
        """N04: a crash in the check, or a stored list that was edited, fails the host."""
        (host,) = await authority.trusted("esx-1")
        await add(lists, crl())
        await authority.write_sql("UPDATE revocation_list SET document = :d", d=b"\x30\x00")
        assert check_of(await verdict_on(authority, host), "endorsement").state is CheckState.FAILED

        await authority.write_sql("DELETE FROM revocation_list")

        def crash(*_):
            raise ZeroDivisionError

        monkeypatch.setattr(trustlists, "check_taken_back", crash)
        await authority.apply_policy(f'name = "p"\n[endorsement]\ndenied = ["{"0" * 64}"]\n')
        check = check_of(await verdict_on(authority, host), "endorsement")
        assert (check.state, check.detail) == (
            CheckState.FAILED,
            "the check crashed: ZeroDivisionError",
        )


class TestDenyList:
    @pytest.mark.parametrize("what", ["certificate", "key", "ek", "ca", "root"])
    async def test_whatever_is_named_counts_no_more(self, authority, what):
        """Rule 29: one TPM by certificate, key or EK; or a CA with everything below it."""
        (host,) = await authority.trusted("esx-1")
        named = {
            "certificate": host.tpm.ek_certificate,
            "key": ek_certificates.public_key_info(host.tpm.ek),
            "ek": host.tpm.ek_public,
            "ca": ek_certificates.intermediate(),
            "root": ek_certificates.root(),
        }[what]
        digest = hashlib.sha256(named).hexdigest()
        await authority.apply_policy(f'name = "p"\n[endorsement]\ndenied = ["{digest}"]\n')
        verdict = await verdict_on(authority, host)
        assert not verdict.passed
        assert "deny list" in check_of(verdict, "endorsement").detail
        with pytest.raises(EndorsementRejected, match="deny list"):
            await authority.enrol(authority.host("esx-1", tpm=replace(host.tpm, generation=2)))

    async def test_others_go_on(self, authority):
        """What is named is one thing."""
        bad, good = await authority.trusted("esx-1", "esx-2")
        digest = hashlib.sha256(bad.tpm.ek_public).hexdigest()
        await authority.apply_policy(f'name = "p"\n[endorsement]\ndenied = ["{digest}"]\n')
        assert not (await verdict_on(authority, bad)).passed
        assert (await verdict_on(authority, good)).passed

    @pytest.mark.parametrize("entry", ["", "abc", "G" * 64, "A" * 64, "0" * 63])
    async def test_an_entry_is_a_hash(self, authority, entry):
        """A typing error is an error, not an entry that matches nothing."""
        with pytest.raises(PolicyInvalid, match=r"endorsement\.denied"):
            await authority.apply_policy(f'name = "p"\n[endorsement]\ndenied = ["{entry}"]\n')


class TestFirmware:
    @pytest.mark.parametrize(
        ("requirement", "state"),
        [
            ("required", CheckState.FAILED),
            ("warn", CheckState.WARNING),
            ("off", CheckState.SKIPPED),
        ],
    )
    async def test_a_published_flaw_counts_as_the_policy_says(self, authority, requirement, state):
        """Rule 17: by the version in the quote, not by the one in the factory's certificate."""
        (host,) = await authority.trusted("esx-1")
        await authority.apply_policy(
            f'name = "p"\n[tpm]\nfirmware_flaws = "{requirement}"\nfirmware_rollback = "off"\n'
        )
        host.firmware = FLAWED
        verdict = await verdict_on(authority, host)
        check = check_of(verdict, "tpm-firmware.flaws")
        assert (check.state, verdict.passed) == (state, state is not CheckState.FAILED)
        assert "CVE-2017-15361" in check.detail

    async def test_firmware_does_not_go_back(self, authority):
        """Rule 17: once newer firmware was seen an older one fails, until it is newer again."""
        (host,) = await authority.trusted("esx-1")
        await authority.apply_policy('name = "p"\n[tpm]\nfirmware_rollback = "required"\n')
        newest = host.firmware
        assert (await verdict_on(authority, host)).passed
        host.firmware = newest - (1 << 32)
        for _ in range(2):
            verdict = await verdict_on(authority, host)
            assert check_of(verdict, "tpm-firmware.rollback").state is CheckState.FAILED
            assert not verdict.passed
        host.firmware = newest
        assert (await verdict_on(authority, host)).passed

    async def test_a_step_back_can_be_wanted(self, authority):
        """An operator takes the older one over by letting one verdict pass with a warning."""
        (host,) = await authority.trusted("esx-1")
        await authority.attest(host)
        host.firmware -= 1
        for state in (CheckState.WARNING, CheckState.PASSED):
            verdict = await verdict_on(authority, host)
            assert (verdict.passed, check_of(verdict, "tpm-firmware.rollback").state) == (
                True,
                state,
            )


def extend_unlogged(host: SimulatedHost, pcr: int, *contents: bytes) -> None:
    """Measure into a register and forget to write it into the log, as some firmware does."""
    for bank, values in host.pcrs.items():
        for content in contents:
            digest = hashlib.new(str(bank), content).digest()
            values[pcr] = hashlib.new(str(bank), values[pcr] + digest).digest()


class TestQuirks:
    @pytest.mark.parametrize(
        ("quirks", "passed"),
        [
            ((), False),
            (("exit-boot-services-failed-once", "shim-trailing-bytes"), False),
            (("exit-boot-services-invocation-missing",), False),
            (("exit-boot-services-missing",), True),
        ],
    )
    async def test_a_deviation_is_allowed_by_name_only(self, authority, quirks, passed):
        """Rule 43: the quirk that fits and that the policy names explains the PCR; no other does."""
        (host,) = await authority.trusted("esx-1")
        host.reboot()
        extend_unlogged(
            host, 5, b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success"
        )
        named = ", ".join(f'"{each}"' for each in quirks)
        await authority.apply_policy(f'name = "p"\n[boot]\nquirks = [{named}]\n')
        verdict = await verdict_on(authority, host)
        assert verdict.passed is passed
        if passed:
            shown = check_of(verdict, "boot-log.sha256.quirk.pcr-5")
            assert (shown.state, shown.found) == (CheckState.PASSED, quirks[0])
        else:
            assert check_of(verdict, "boot-log.sha256.pcr-5").state is CheckState.FAILED

    async def test_a_quirk_explains_exactly_and_nothing_else(self, authority):
        """Rule 43: there is no search: one more byte in the register, and it fails."""
        (host,) = await authority.trusted("esx-1")
        host.reboot()
        extend_unlogged(
            host,
            5,
            b"Exit Boot Services Invocation",
            b"Exit Boot Services Returned with Success",
            b"and something else",
        )
        await authority.apply_policy(
            'name = "p"\n[boot]\nquirks = ["exit-boot-services-missing"]\n'
        )
        assert not (await verdict_on(authority, host)).passed

    async def test_an_unknown_quirk_is_an_error(self, authority):
        """A typing error in a relaxation is told, not passed over."""
        with pytest.raises(PolicyInvalid, match=r"boot\.quirks"):
            await authority.apply_policy('name = "p"\n[boot]\nquirks = ["anything-goes"]\n')
