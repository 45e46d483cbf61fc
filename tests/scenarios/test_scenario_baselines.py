"""Alternatives per component, from the evidence of hosts to verdicts: updates, mixes, classes."""

from dataclasses import replace

import pytest
from support.simulated_authority import BY, CLUSTER, HOUR_MS
from support.simulated_host import BOOTS
from support.variants import good_boot

from trustauthority.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PolicyInvalid,
)
from trustauthority.model.baseline import BaselineState, Component
from trustauthority.model.prediction import UpdatedFile
from trustauthority.model.verdict import CheckState, first_failure
from trustauthority.services.baselines import Update, VariantName

GOLDEN = VariantName(cluster=CLUSTER, name="golden")
NEXT = VariantName(cluster=CLUSTER, name="next")
UPDATE = VariantName(cluster=CLUSTER, name="6.12", component=Component.KERNEL)


def kernel_package() -> Update:
    """The other kernel, as its files hash: image and file of the kernel, file of the initrd."""
    new = good_boot("other-kernel-build")
    image, kernel, initrd = (
        next(new.digest(e).hex() for e in reversed(new.events) if e.pcr == pcr and text in e.data)
        for pcr, text in ((4, b""), (9, b"/vmlinuz"), (9, b"/initrd"))
    )
    files = (
        UpdatedFile(role="kernel", digest=kernel, image_digest=image),
        UpdatedFile(role="initrd", digest=initrd),
    )
    return Update(
        host="esx-1", base="", files=tuple({"sha256": each} for each in files), command_line=""
    )


async def approve(authority, wanted, host, **how) -> None:
    """Capture and approve."""
    proposed = await authority.baselines.capture(wanted, host.host_id, by=BY, **how)
    await authority.baselines.approve(wanted, sha256=proposed.sha256, by=BY, dry_run=False)


async def entries(authority) -> dict[tuple[str, str], object]:
    """The variants by component and name."""
    return {
        (str(each.component), each.name): each for each in await authority.baselines.entries("")
    }


class TestUpdate:
    async def test_old_and_new_kernel_pass_and_a_third_fails(self, authority):
        """N18: during an update both kernels are good; another boot fails and names the event."""
        old, new = await authority.trusted("esx-1", "esx-2")
        new.reboot(BOOTS / "other-kernel-build")
        refused = await authority.attest(new)
        assert not refused.verdict.passed
        assert refused.verdict.baseline == (
            "firmware=golden secure-boot=golden boot-loader=golden command-line=golden"
        )
        await approve(authority, UPDATE, new)
        assert (await authority.attest(old)).verdict.baseline == "golden"
        passed = await authority.attest(new)
        assert passed.verdict.passed
        assert passed.verdict.baseline == (
            "firmware=golden secure-boot=golden boot-loader=golden kernel=6.12 command-line=golden"
        )
        new.reboot(BOOTS / "changed-cmdline")
        third = await authority.attest(new)
        failure = first_failure(third.verdict.checks)
        assert not third.verdict.passed
        assert failure.id == "baseline.boot-loader.pcr-8"
        assert "systemd.debug_shell=1" in failure.found

    async def test_retiring_the_old_kernel_leaves_the_rest_in_force(self, authority):
        """S1: after the update one component of the old baseline is retired, and only that."""
        old, new = await authority.trusted("esx-1", "esx-2")
        new.reboot(BOOTS / "other-kernel-build")
        await authority.attest(new)
        await approve(authority, UPDATE, new)
        kernel = VariantName(cluster=CLUSTER, name="golden", component=Component.KERNEL)
        retired, _ = await authority.baselines.retire(kernel, by=BY, dry_run=False)
        assert [each.component for each in retired] == [Component.KERNEL]
        assert (await authority.attest(new)).verdict.passed
        failed = await authority.attest(old)
        assert [
            check.id
            for group in failed.verdict.checks
            for check in group.children
            if check.state is CheckState.FAILED
        ] == ["baseline.kernel"]

    async def test_a_mix_of_two_approved_boots_is_refused(self, authority):
        """The firmware of one approved boot and the kernel of another: only parts of each match."""
        (host,) = await authority.trusted("esx-1")
        host.reboot(BOOTS / "secureboot-off")
        await authority.apply_policy('name = "lab"\n[boot]\nsecure_boot = "warn"\n')
        await authority.attest(host)
        firmware = VariantName(cluster=CLUSTER, name="no-sb", component=Component.FIRMWARE)
        await approve(authority, firmware, host)
        attested = await authority.attest(host)
        assert not attested.verdict.passed
        assert attested.verdict.baseline == "firmware=no-sb"


class TestPrediction:
    async def test_an_update_is_approved_before_the_first_host_boots_it(self, authority):
        """Predicted from the package's files, approved, then booted: nobody fails in between."""
        (host,) = await authority.trusted("esx-1")
        await authority.baselines.predict(NEXT, kernel_package(), by=BY, dry_run=True)
        with pytest.raises(NotFound):
            await authority.baselines.approve(NEXT, sha256="0" * 64, by=BY, dry_run=False)
        prediction, proposed = await authority.baselines.predict(
            NEXT, kernel_package(), by=BY, dry_run=False
        )
        assert [each.component for each in proposed.entries] == [Component.KERNEL]
        assert set(prediction.registers) == {4, 9}
        host.reboot(BOOTS / "other-kernel-build")
        assert not (await authority.attest(host)).verdict.passed
        await authority.baselines.approve(NEXT, sha256=proposed.sha256, by=BY, dry_run=False)
        attested = await authority.attest(host)
        assert attested.verdict.passed
        assert "kernel=next" in attested.verdict.baseline
        entry = await authority.last("baseline.predict")
        assert entry["details"]["from"] == "esx-1 with another kernel, initrd"

    async def test_the_variants_of_a_name_are_a_start_too(self, authority):
        """The same prediction without any host."""
        await authority.trusted("esx-1")
        from_host, _ = await authority.baselines.predict(
            NEXT, kernel_package(), by=BY, dry_run=True
        )
        named = replace(kernel_package(), host="", base="golden")
        from_name, _ = await authority.baselines.predict(NEXT, named, by=BY, dry_run=True)
        assert from_name.registers == from_host.registers

    async def test_a_start_is_needed(self, authority):
        """No host and no name, both, an unknown one, digests of another bank."""
        await authority.trusted("esx-1")
        good = kernel_package()
        for update, error in (
            (replace(good, host=""), InvalidRequest),
            (replace(good, base="golden"), InvalidRequest),
            (replace(good, host="", base="none"), NotFound),
            (replace(good, files=({},)), InvalidRequest),
            (replace(good, files=()), FailedPrecondition),
        ):
            with pytest.raises(error):
                await authority.baselines.predict(NEXT, update, by=BY, dry_run=False)


class TestApproval:
    async def test_capture_proposes_one_variant_per_component(self, authority):
        """I-E: nothing of it is in force; a second capture under the name is refused."""
        host = await authority.enrolled("esx-1")
        await authority.attest(host)
        proposed = await authority.baselines.capture(GOLDEN, host.host_id, by=BY)
        assert [each.component for each in proposed.entries] == list(Component)
        assert {each.state for each in proposed.entries} == {BaselineState.PROPOSED}
        with pytest.raises(AlreadyExists):
            await authority.baselines.capture(GOLDEN, host.host_id, by=BY)
        assert not (await authority.attest(host)).verdict.passed

    async def test_components_are_approved_one_by_one_too(self, authority):
        """S10: the hash of one component approves that one and no other."""
        host = await authority.enrolled("esx-1")
        await authority.attest(host)
        proposed = await authority.baselines.capture(GOLDEN, host.host_id, by=BY)
        for entry in proposed.entries:
            one = VariantName(cluster=CLUSTER, name="golden", component=entry.component)
            with pytest.raises(Conflict):
                await authority.baselines.approve(one, sha256=proposed.sha256, by=BY, dry_run=False)
            assert not (await authority.attest(host)).verdict.passed
            await authority.baselines.approve(one, sha256=entry.sha256, by=BY, dry_run=False)
        assert (await authority.attest(host)).verdict.passed
        with pytest.raises(FailedPrecondition, match="approved already"):
            await authority.baselines.approve(GOLDEN, sha256=proposed.sha256, by=BY, dry_run=False)

    async def test_what_is_not_there_is_refused(self, authority):
        """Unknown names, components that the boot lacks, names that are none."""
        host = await authority.enrolled("esx-1")
        await authority.attest(host)
        with pytest.raises(NotFound):
            await authority.baselines.retire(GOLDEN, by=BY, dry_run=False)
        bad = VariantName(cluster=CLUSTER, name="No Name")
        with pytest.raises(InvalidRequest):
            await authority.baselines.capture(bad, host.host_id, by=BY)
        await authority.apply_policy('name = "few"\n[boot]\nbaseline_pcrs = [0, 7]\n')
        with pytest.raises(FailedPrecondition, match="there is no kernel"):
            await authority.baselines.capture(UPDATE, host.host_id, by=BY)
        await authority.baselines.capture(GOLDEN, host.host_id, by=BY)
        with pytest.raises(NotFound, match="no kernel baseline"):
            await authority.baselines.diff(
                VariantName(cluster=CLUSTER, name="golden", component=Component.KERNEL),
                host.host_id,
            )

    async def test_diff_compares_each_component_or_one(self, authority):
        """The same comparison before anything is in force."""
        (host,) = await authority.trusted("esx-1")
        assert await authority.baselines.diff(GOLDEN, host.host_id) == (
            True,
            (await authority.baselines.diff(GOLDEN, host.host_id))[1],
        )
        host.reboot(BOOTS / "other-kernel-build")
        await authority.attest(host)
        same, checks = await authority.baselines.diff(GOLDEN, host.host_id)
        assert not same
        assert [check.id for check in checks if check.state is CheckState.FAILED] == [
            "baseline.kernel"
        ]
        firmware = VariantName(cluster=CLUSTER, name="golden", component=Component.FIRMWARE)
        assert (await authority.baselines.diff(firmware, host.host_id))[0]


class TestWeight:
    @pytest.mark.parametrize("approved", [False, True])
    async def test_a_policy_that_warns_shows_what_differs(self, authority, approved):
        """Warn: each failed check of the tree is a warning, and the host passes."""
        host = await authority.enrolled("esx-1")
        await authority.apply_policy('name = "soft"\n[boot]\nbaseline = "warn"\n')
        await authority.attest(host)
        if approved:
            await approve(authority, GOLDEN, host)
        host.reboot(BOOTS / "other-kernel-build")
        attested = await authority.attest(host)
        (group,) = (each for each in attested.verdict.checks if each.id == "baseline")
        assert attested.verdict.passed
        assert group.state is CheckState.WARNING
        states = {check.id: check for check in group.children}
        if not approved:
            assert set(states) == {"baseline.exists"}
            return
        kernel = states["baseline.kernel"]
        assert {each.state for each in (kernel, *kernel.children)} == {CheckState.WARNING}
        assert states["baseline.firmware"].state is CheckState.PASSED

    async def test_a_policy_that_does_not_ask_skips(self, authority):
        """Off: nothing is compared, and nothing is said to have passed."""
        host = await authority.enrolled("esx-1")
        await authority.apply_policy('name = "none"\n[boot]\nbaseline = "off"\n')
        attested = await authority.attest(host)
        (group,) = (each for each in attested.verdict.checks if each.id == "baseline")
        assert attested.verdict.passed
        assert (group.state, attested.verdict.baseline) == (CheckState.SKIPPED, "")


PAIRED = 'name = "paired"\n[boot]\nhost_class = "required"\n'


class TestClasses:
    async def test_the_inventory_gives_the_class(self, authority):
        """Pairing from the first day: what the inventory says of an EK is the class of the host."""
        host = authority.host("esx-1")
        await authority.list_machine(host, host_class="r650")
        await authority.enrol(host)
        assert (await authority.record(host)).host_class == "r650"
        entry = await authority.last("host.enrol")
        assert entry["details"]["host_class"] == "r650"

    async def test_a_variant_of_another_class_is_refused(self, authority):
        """A genuine host with an approved boot fails when that boot is for other hardware."""
        host = authority.host("esx-1")
        await authority.list_machine(host, host_class="edge")
        await authority.enrol(host)
        await authority.attest(host)
        await approve(authority, GOLDEN, host, host_class="r650")
        attested = await authority.attest(host)
        failure = first_failure(attested.verdict.checks)
        assert not attested.verdict.passed
        assert (failure.id, failure.found) == ("baseline.firmware", "class edge")
        await self.admit(authority, host, "r650")
        assert await authority.standing(host) != "passed"
        assert (await authority.attest(host)).verdict.passed

    async def test_another_class_voids_the_verdict(self, authority):
        """S1: trust was decided under the old class; the host must attest anew, and fails."""
        host = authority.host("esx-1")
        await authority.list_machine(host, host_class="r650")
        await authority.enrol(host)
        await authority.attest(host)
        await approve(authority, GOLDEN, host, host_class="r650")
        assert (await authority.attest(host)).verdict.passed
        await self.admit(authority, host, "edge")
        assert await authority.standing(host) == "unknown"
        assert not (await authority.attest(host)).verdict.passed
        assert (await authority.last("host.admit"))["details"]["host_class"] == "edge"

    async def test_admission_without_another_class_is_refused_as_before(self, authority):
        """An admitted host is admitted: the same class again, or none, changes nothing."""
        (host,) = await authority.trusted("esx-1")
        await self.admit(authority, host, "r650")
        for host_class in ("", "r650"):
            with pytest.raises(FailedPrecondition, match="not waiting"):
                await self.admit(authority, host, host_class)

    async def test_policy_asks_for_pairing(self, authority):
        """With boot.host_class required a host needs a class, and firmware approved for it."""
        (host,) = await authority.trusted("esx-1")
        await authority.apply_policy(PAIRED)
        failed = await authority.attest(host)
        assert first_failure(failed.verdict.checks).id == "baseline.host-class"
        await self.admit(authority, host, "r650")
        assert not (await authority.attest(host)).verdict.passed
        firmware = VariantName(cluster=CLUSTER, name="r650", component=Component.FIRMWARE)
        await approve(authority, firmware, host, host_class="r650")
        attested = await authority.attest(host)
        assert attested.verdict.passed
        assert attested.verdict.baseline.startswith("firmware=r650 secure-boot=golden")

    @pytest.mark.parametrize(
        "rest", ['baseline = "warn"', 'baseline = "off"', "baseline_pcrs = [7, 8, 9]"]
    )
    async def test_pairing_needs_the_firmware_baseline(self, authority, rest):
        """A policy that asks for a class and does not look at the firmware contradicts itself."""
        with pytest.raises(PolicyInvalid, match="host_class"):
            await authority.apply_policy(PAIRED + rest + "\n")

    async def admit(self, authority, host, host_class: str) -> None:
        """Give a host a class."""
        row = await authority.record(host)
        await authority.hosts.admit(
            host.host_id,
            approval_sha256=row.approval_sha256,
            host_class=host_class,
            by=BY,
            dry_run=False,
        )


class TestLastMatched:
    async def test_it_is_remembered_to_an_hour(self, authority):
        """Attestation writes it once an hour, not every time; failed verdicts never do."""
        (host,) = await authority.trusted("esx-1")
        first = {key: each.last_matched_at_ms for key, each in (await entries(authority)).items()}
        assert None not in first.values()
        authority.pass_ms(HOUR_MS // 2, host)
        await authority.attest(host)
        again = {key: each.last_matched_at_ms for key, each in (await entries(authority)).items()}
        assert again == first
        authority.pass_ms(HOUR_MS // 2, host)
        host.reboot(BOOTS / "changed-cmdline")
        assert not (await authority.attest(host)).verdict.passed
        again = {key: each.last_matched_at_ms for key, each in (await entries(authority)).items()}
        assert again == first
        host.reboot(BOOTS / "good")
        assert (await authority.attest(host)).verdict.passed
        later = {key: each.last_matched_at_ms for key, each in (await entries(authority)).items()}
        assert all(later[key] - first[key] >= HOUR_MS for key in first)

    async def test_only_what_matched_is_remembered(self, authority):
        """A variant that nobody boots stays unmatched: it is the one to retire."""
        old, new = await authority.trusted("esx-1", "esx-2")
        new.reboot(BOOTS / "other-kernel-build")
        await authority.attest(new)
        await approve(authority, UPDATE, new)
        await authority.attest(old)
        assert (await entries(authority))["kernel", "6.12"].last_matched_at_ms is None
        await authority.attest(new)
        assert (await entries(authority))["kernel", "6.12"].last_matched_at_ms is not None
