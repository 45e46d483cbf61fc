"""Each component of a boot must be one approved variant, over all registers at once."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.variants import PCRS, changed, good_boot, variants, with_digest

from trustauthority.appraisal.alternatives import compare_variant, judge_boot
from trustauthority.appraisal.baseline import (
    capture_baselines,
    content_sha256,
    decode_baseline,
    differences,
    encode_baseline,
    summary_lines,
)
from trustauthority.appraisal.components import split_components
from trustauthority.errors import FailedPrecondition
from trustauthority.model.baseline import Component, MatchedVariant, compact_names
from trustauthority.model.bootlog import EventType
from trustauthority.model.identifiers import ClusterId
from trustauthority.model.policy import BootPolicy, Requirement
from trustauthority.model.verdict import CheckState, first_failure

GOOD = good_boot()
APPROVED = variants(GOOD)
POLICY = BootPolicy(baseline_pcrs=PCRS)
TYPES = tuple(int(kind) for kind in EventType)
HINTS = (
    b"grub_cmd: linux /vmlinuz",
    b"grub_cmd: set default=0",
    b"kernel_cmdline: /vmlinuz quiet",
    b"/vmlinuz",
    b"/initrd.img",
    b"(hd0,gpt1)/grub/normal.mod",
    b"MokList",
    bytes(4),
    b"\0\0\0\0\0\0\0\0LOADED_IMAGE::LoadOptions",
    b"\0\0\0\0\0\0\0\0Linux initrd",
    ".linux".encode("utf-16-le"),
    b"",
)


def judge(log, approved=APPROVED, *, policy=POLICY, host_class=""):
    """The judgement of a boot."""
    return judge_boot(log, approved, policy, host_class=host_class)


def passes(log, approved=APPROVED, **how) -> bool:
    """Whether no check fails."""
    return first_failure(judge(log, approved, **how).checks) is None


def failing(log, approved=APPROVED, **how) -> list[str]:
    """Ids of the failed checks."""
    checks = judge(log, approved, **how).checks
    return [check.id for check in checks if check.state is CheckState.FAILED]


def number_of(log, text: bytes) -> int:
    """The first event whose data begins with this text."""
    return next(event.number for event in log.events if event.data.startswith(text))


def evil(log, number: int, digest: bytes = b"\xee" * 32):
    """The same boot, in which one event measured something else."""
    return changed(log, lambda e: with_digest(log, e, digest) if e.number == number else e)


# --- what passes -----------------------------------------------------------------------------


def test_an_approved_boot_passes_and_names_its_variants():
    """The good boot, and the same host booted again: one name for all components."""
    judged = judge(GOOD)
    assert first_failure(judged.checks) is None
    assert judged.complete
    assert compact_names(judged.matched, whole=judged.complete) == "golden"
    assert passes(good_boot("good-second-boot"))
    assert [check.id for check in judged.checks] == [
        *(f"baseline.{part}" for part in Component),
        *(f"baseline.pcr-{pcr}" for pcr in sorted(PCRS)),
    ]


def test_an_update_is_one_more_variant():
    """N18: with the new kernel approved, hosts of before and after the update pass; a third fails."""
    new = good_boot("other-kernel-build")
    kernel = [each for each in variants(new, "6.12") if each.component is Component.KERNEL]
    approved = (*APPROVED, *kernel)
    assert passes(GOOD, approved)
    judged = judge(new, approved)
    assert first_failure(judged.checks) is None
    assert compact_names(judged.matched, whole=True) == (
        "firmware=golden secure-boot=golden boot-loader=golden kernel=6.12 command-line=golden"
    )
    third = evil(new, number_of(new, b"/initrd.img"))
    assert failing(third, approved) == ["baseline.kernel"]


def test_a_document_round_trips():
    """What is approved by its hash is what is compared."""
    for each in APPROVED:
        assert decode_baseline(encode_baseline(each)) == each
    lines = summary_lines(APPROVED[3])
    assert lines == ("PCR 4: 2 events", "PCR 5: 2 events", "PCR 9: 2 events")
    assert "PCR 2: 1 event" in summary_lines(APPROVED[0])


def test_a_register_without_events_is_claimed_too():
    """A variant says of each register asked for what it measures there, nothing included."""
    assert all(set(each.pcrs) == set(PCRS) for each in APPROVED)
    assert APPROVED[0].pcrs[8] == ()


# --- types and names prove nothing (rule 37) -------------------------------------------------


@pytest.mark.parametrize("capture", ["changed-cmdline", "other-kernel-build", "secureboot-off"])
def test_no_label_makes_another_boot_pass(capture):
    """Rule 37: every type on every event that differs, with every name that means something here."""
    log = good_boot(capture)
    assert not passes(log)
    known = {
        digest for each in APPROVED for runs in each.pcrs.values() for digest in _digests(runs)
    }
    strange = [event for event in log.events if log.digest(event).hex() not in known]
    assert strange
    for event, kind, hint in itertools.product(strange, TYPES, HINTS):
        forged = changed(
            log,
            lambda e, event=event, kind=kind, hint=hint: (
                e._replace(type=kind, data=hint) if e.number == event.number else e
            ),
        )
        assert not passes(forged), (event.number, kind, hint)


def _digests(runs) -> list[str]:
    return [event.digest for run in runs for event in run.events]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_relabelling_turns_a_failure_into_a_pass(data):
    """Rule 37: a boot whose registers differ fails, whatever types, names and order its log claims."""
    log = good_boot(data.draw(st.sampled_from(["changed-cmdline", "other-kernel-build"])))
    numbers = st.sampled_from([event.number for event in log.events])
    labels = data.draw(
        st.dictionaries(
            numbers, st.tuples(st.sampled_from(TYPES), st.sampled_from(HINTS)), max_size=12
        )
    )
    forged = changed(
        log,
        lambda e: (
            e._replace(type=labels[e.number][0], data=labels[e.number][1])
            if e.number in labels
            else e
        ),
    )
    order = data.draw(st.permutations(sorted({event.pcr for event in log.events})))
    forged = replace(
        forged, events=tuple(sorted(forged.events, key=lambda event: order.index(event.pcr)))
    )
    assert not passes(forged)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_passes_has_the_approved_digests_in_the_approved_order(data):
    """S12: a pass means that each register holds exactly what an approved boot extends."""
    numbers = [event.number for event in GOOD.events]
    first, second = data.draw(st.tuples(st.sampled_from(numbers), st.sampled_from(numbers)))
    labels = data.draw(
        st.dictionaries(
            st.sampled_from(numbers),
            st.tuples(st.sampled_from(TYPES), st.sampled_from(HINTS)),
            max_size=6,
        )
    )
    by_number = {event.number: event for event in GOOD.events}
    digests = {first: GOOD.digest(by_number[second]), second: GOOD.digest(by_number[first])}

    def change(event):
        kind, hint = labels.get(event.number, (event.type, event.data))
        made = event._replace(type=kind, data=hint)
        return with_digest(GOOD, made, digests.get(event.number, GOOD.digest(event)))

    forged = changed(GOOD, change)
    same = all(
        [forged.digest(event) for event in forged.in_register(pcr)]
        == [GOOD.digest(event) for event in GOOD.in_register(pcr)]
        for pcr in PCRS
    )
    assert same or not passes(forged)


def test_an_approved_digest_in_another_component_is_not_approved():
    """The approved initrd's digest in the place of GRUB's configuration is another boot."""
    initrd = next(event for event in GOOD.events if event.data.startswith(b"/initrd.img"))
    swapped = evil(GOOD, number_of(GOOD, b"(hd0,gpt1)/EFI/debian/grub.cfg"), GOOD.digest(initrd))
    assert not passes(swapped)


def test_events_of_one_component_in_another_place_fail():
    """The command line is fixed after GRUB's commands: extended before them it is another boot."""
    line = {number_of(GOOD, b"grub_cmd: linux"), number_of(GOOD, b"kernel_cmdline")}
    first = next(event for event in GOOD.events if event.pcr == 8).number
    moved = [event for event in GOOD.events if event.number not in line]
    at = next(position for position, event in enumerate(moved) if event.number == first)
    early = [event for event in GOOD.events if event.number in line]
    log = replace(GOOD, events=(*moved[:at], *early, *moved[at:]))
    assert "baseline.command-line" in failing(log)
    (difference,) = (
        each for each in differences(split_components(log, PCRS), APPROVED[4]) if each.pcr == 8
    )
    assert difference.moved


# --- no mixing -------------------------------------------------------------------------------


def test_a_component_is_one_variant_over_all_registers():
    """PCR 0 of firmware A with PCR 2 of firmware B is neither, though each value is approved."""
    in_pcr_0 = evil(GOOD, next(e.number for e in GOOD.events if e.pcr == 0))
    in_pcr_2 = evil(GOOD, next(e.number for e in GOOD.events if e.pcr == 2))
    approved = (*APPROVED, *variants(in_pcr_0, "a"), *variants(in_pcr_2, "b"))
    assert passes(in_pcr_0, approved)
    assert passes(in_pcr_2, approved)
    both = evil(in_pcr_0, next(e.number for e in GOOD.events if e.pcr == 2))
    assert failing(both, approved) == ["baseline.firmware"]
    assert passes(both, (*approved, *variants(both, "c")))


def test_a_kernel_of_one_update_with_the_initrd_of_another_is_refused():
    """The same for PCR 4 and 9: each file is approved, the pair is not."""
    new = good_boot("other-kernel-build")
    approved = (*APPROVED, *variants(new, "6.12"))
    image, initrd = number_of(GOOD, b"/vmlinuz\0"), number_of(GOOD, b"/initrd.img\0")
    mixed = evil(GOOD, initrd, next(new.digest(e) for e in new.events if e.number == initrd))
    assert image != initrd
    judged = judge(mixed, approved)
    failure = first_failure(judged.checks)
    assert failure is not None
    assert (failure.id, failure.event_index) == ("baseline.kernel.pcr-9", initrd)
    assert not judged.complete
    assert {each.component for each in judged.matched} == set(Component) - {Component.KERNEL}


def test_a_left_out_event_and_one_more_fail_in_their_component():
    """N13: a boot with less, or with more, is another one."""
    initrd = number_of(GOOD, b"/initrd.img\0")
    less = changed(GOOD, lambda e: None if e.number == initrd else e)
    (check,) = (each for each in judge(less).checks if each.state is CheckState.FAILED)
    assert (check.id, check.children[0].detail) == (
        "baseline.kernel",
        "the log ends before EV_IPL",
    )
    extra = GOOD.events[-1]._replace(pcr=14, type=int(EventType.IPL), data=b"MokMore", number=99)
    more = replace(GOOD, events=(*GOOD.events, extra))
    failure = first_failure(judge(more).checks)
    assert failure is not None
    assert (failure.id, failure.expected) == ("baseline.boot-loader.pcr-14", "no further event")


# --- nothing passes because it is absent or unknown ------------------------------------------


@pytest.mark.parametrize("part", list(Component))
def test_a_component_without_approved_variant_fails(part):
    """Each component that occurs needs one of its own."""
    approved = [each for each in APPROVED if each.component is not part]
    assert failing(GOOD, approved) == [f"baseline.{part}"]


@pytest.mark.parametrize(
    ("part", "pcrs"),
    [("firmware", {0, 1, 2, 3, 6}), ("secure-boot", {7}), ("kernel", {4, 9, 11})],
)
def test_a_component_that_every_boot_has_can_not_be_left_out(part, pcrs):
    """A register without events proves nothing good, even when nothing is approved for it."""
    empty = changed(GOOD, lambda e: None if e.pcr in pcrs else e)
    policy = replace(POLICY, baseline_pcrs=tuple(pcrs))
    found = judge(empty, (), policy=policy)
    assert f"baseline.{part}" in [
        check.id for check in found.checks if check.state is CheckState.FAILED
    ]
    assert not found.complete


def test_one_unrecognised_event_takes_the_register_away():
    """A register is claimed only when all its events are recognised (systemd-pcrlock's rule)."""
    strange = GOOD.events[-1]._replace(pcr=9, type=0x8401, data=b"?", number=98)
    log = replace(GOOD, events=(*GOOD.events, strange))
    (check,) = (each for each in judge(log).checks if each.state is CheckState.FAILED)
    assert (check.id, check.event_index) == ("baseline.pcr-9", 98)
    assert "0x00008401" in check.detail
    twice = replace(log, events=(*log.events, strange._replace(number=99)))
    assert any("and 1 more" in check.found for check in judge(twice).checks)
    with pytest.raises(FailedPrecondition, match=r"event #98 .* is of no component"):
        capture_baselines("x", ClusterId("prod"), log, PCRS)
    assert passes(log, policy=replace(POLICY, baseline_pcrs=(0, 4, 7, 8)))


def test_a_register_that_the_log_does_not_explain_fails():
    """Rule 34: events of a register that does not replay are out of reach."""
    events = tuple(event for event in GOOD.events if event.pcr != 14)
    log = replace(GOOD, events=events, verified_pcrs=GOOD.verified_pcrs - {14})
    found = {check.id: check for check in judge(log).checks}
    assert found["baseline.pcr-14"].state is CheckState.FAILED
    assert found["baseline.boot-loader"].state is CheckState.FAILED


def test_a_variant_counts_for_the_registers_it_was_captured_for():
    """A policy that asks for more is not met by a baseline of before; one that asks for less is."""
    old = variants(GOOD, pcrs=(0, 4, 7, 8, 9))
    assert passes(GOOD, old, policy=replace(POLICY, baseline_pcrs=(0, 4, 7, 8)))
    wider = replace(POLICY, baseline_pcrs=(0, 4, 7, 8, 9, 14))
    failure = first_failure(judge(GOOD, old, policy=wider).checks)
    assert failure is not None
    assert failure.detail == "golden was captured before this PCR was asked for"


def test_a_variant_of_another_bank_is_none():
    """Digests of different algorithms say nothing about each other."""
    other = [replace(each, bank="sha384") for each in APPROVED]
    assert failing(GOOD, other) == [f"baseline.{part}" for part in Component]


# --- classes ---------------------------------------------------------------------------------


def test_a_variant_of_a_class_matches_hosts_of_that_class_only():
    """T9 of the peers: a database server does not attest with an edge node's firmware."""
    ours = variants(GOOD, "r650", host_class="r650")
    assert passes(GOOD, ours, host_class="r650")
    for other in ("", "edge"):
        assert failing(GOOD, ours, host_class=other) == [f"baseline.{part}" for part in Component]
    check = judge(GOOD, ours, host_class="edge").checks[0]
    assert (check.expected, check.found) == ("a host of class r650", "class edge")
    assert judge(GOOD, ours).checks[0].found == "a host without class"


def test_a_variant_for_any_class_is_enough():
    """Of two equal variants the one that fits is taken, wherever it stands in the list."""
    mixed = (*variants(GOOD, "aa", host_class="r650"), *variants(GOOD, "bb"))
    for approved in (mixed, mixed[::-1]):
        judged = judge(GOOD, approved, host_class="edge")
        assert {each.name for each in judged.matched} == {"bb"}


def test_a_policy_may_ask_for_a_class():
    """A host without class, or whose firmware is approved for any host, fails where policy asks."""
    paired = replace(POLICY, host_class=Requirement.REQUIRED)
    ours = variants(GOOD, "r650", host_class="r650")
    firmware = [each for each in ours if each.component is Component.FIRMWARE]
    assert passes(GOOD, (*APPROVED, *firmware), policy=paired, host_class="r650")
    for approved, host_class in (
        ((*APPROVED, *firmware), ""),
        ((*APPROVED, *firmware), "edge"),
        (APPROVED, "r650"),
        ((*APPROVED, *ours[1:]), "r650"),
        (APPROVED, ""),
    ):
        found = failing(GOOD, approved, policy=paired, host_class=host_class)
        assert found == ["baseline.host-class"], host_class
    warned = replace(POLICY, host_class=Requirement.WARN)
    assert passes(GOOD, APPROVED, policy=warned)
    checks = judge(GOOD, APPROVED, policy=warned).checks
    assert CheckState.WARNING in {check.state for check in checks}


# --- what is said ----------------------------------------------------------------------------


def test_the_closest_variant_and_the_first_difference_are_named():
    """An operator reads which event differs, what it means and what to do."""
    log = good_boot("changed-cmdline")
    new = variants(good_boot("other-kernel-build"), "6.12")
    found = {check.id: check for check in judge(log, (*new, *APPROVED)).checks}
    line = found["baseline.command-line"]
    assert line.expected in {"golden, the closest variant", "6.12, the closest variant"}
    (child,) = line.children
    assert child.pcr == 8
    assert "systemd.debug_shell=1" in child.found
    assert "systemd.debug_shell" not in child.expected
    assert "--component command-line" in child.remedy
    assert found["baseline.kernel"].found == "golden"


def test_comparing_with_one_variant():
    """``ta baseline diff`` compares whatever the state and class of the variant."""
    kernel = variants(good_boot("other-kernel-build"), "6.12", host_class="edge")[3]
    assert compare_variant(GOOD, APPROVED[3], POLICY).state is CheckState.PASSED
    check = compare_variant(GOOD, kernel, POLICY)
    assert check.state is CheckState.FAILED
    assert [child.pcr for child in check.children] == [4, 9]


def test_names_on_one_line():
    """One name stands for all components only when all of them matched."""
    one = (MatchedVariant(component=Component.KERNEL, name="a"),)
    assert compact_names(one, whole=True) == "a"
    assert compact_names(one, whole=False) == "kernel=a"
    assert compact_names((), whole=False) == ""


def test_what_is_approved_together_has_one_name():
    """S10: the hash of one variant is its own; of several it covers component and content of each."""
    one, two = "1" * 64, "2" * 64
    assert content_sha256({Component.KERNEL: one}) == one
    both = content_sha256({Component.KERNEL: one, Component.FIRMWARE: two})
    assert both == content_sha256({Component.FIRMWARE: two, Component.KERNEL: one})
    assert (
        len({both, one, two, content_sha256({Component.KERNEL: two, Component.FIRMWARE: one})}) == 4
    )
