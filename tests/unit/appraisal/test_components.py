"""Which component measured an event; whatever nobody knows stays unrecognised (rules 37, 38)."""

import pytest
from support.corpus import corpus_folder
from support.variants import (
    BANK,
    BOOTS,
    CAPTURES,
    boot_log,
    changed,
    good_boot,
    proven,
    with_digest,
)

from trustauthority.appraisal.components import Position, component_of, split_components
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.errors import MalformedEvidence
from trustauthority.model.baseline import Component
from trustauthority.model.bootlog import BootEvent, EventType, RegisterKind
from trustauthority.model.digest import HashAlgorithm
from trustauthority.verification.replay import replay, verify_boot_log

IPL, TAG = int(EventType.IPL), int(EventType.EVENT_TAG)
ALL = range(16)
KERNEL_FILES = (b"vmlinuz", b"vmlinux", b"bzImage", b"initrd", b"initramfs")
LINUX_PCRS = (0, 3, 4, 5, 6, 7, 8, 9, 14)
NOWHERE = Position(separated=True, starts_kernel=False, grub=True, kernel_files=frozenset())


def event(pcr: int, kind: int, data: bytes) -> BootEvent:
    """One event; its digest does not matter here."""
    return BootEvent(1, 0, pcr, kind, (bytes(32),), data)


def counts(log, pcrs=ALL) -> dict[str, dict[int, int]]:
    """Component → PCR → number of events."""
    split = split_components(log, pcrs)
    return {
        str(part): {
            pcr: sum(len(run.events) for run in runs) for pcr, runs in sorted(registers.items())
        }
        for part, registers in split.runs.items()
    }


def wide(text: str) -> bytes:
    """Text as systemd-stub logs it."""
    return text.encode("utf-16-le") + b"\0\0"


def test_a_grub_boot_has_all_five_components():
    """Shim, GRUB and a kernel: every event of a real boot belongs to one component."""
    assert counts(good_boot()) == {
        "firmware": {0: 4, 1: 5, 2: 1, 3: 1, 4: 2, 5: 1, 6: 1},
        "secure-boot": {7: 6},
        "boot-loader": {4: 2, 5: 1, 7: 3, 8: 10, 9: 1, 14: 3},
        "kernel": {4: 2, 5: 2, 9: 2},
        "command-line": {8: 2},
    }
    assert not split_components(good_boot(), ALL).unrecognised


def test_the_order_of_components_is_kept_per_register():
    """GRUB's commands stand on both sides of the kernel's command line, and their runs say so."""
    split = split_components(good_boot(), ALL)
    loader = split.runs_of(Component.BOOT_LOADER, 8)
    assert [(run.after, len(run.events)) for run in loader] == [
        (None, 9),
        (Component.COMMAND_LINE, 1),
    ]
    (line,) = split.runs_of(Component.COMMAND_LINE, 8)
    assert (line.after, len(line.events)) == (Component.BOOT_LOADER, 2)
    assert split.runs_of(Component.COMMAND_LINE, 4) == ()


def test_a_kernel_that_grub_chain_loads():
    """Without Secure Boot the kernel measures its own options; they are the command line."""
    found = counts(proven(boot_log(BOOTS / "secureboot-off")))
    assert (found["command-line"], found["kernel"]) == ({9: 1}, {4: 1, 5: 2, 9: 1})


def test_a_unified_kernel_image_is_the_kernel():
    """Firmware starts the kernel itself: the only image is no boot loader."""
    if not CAPTURES.is_dir():
        pytest.skip("the shared captures are not beside the project")
    found = counts(proven(boot_log(CAPTURES / "uki-snakeoil-secureboot")))
    assert found["kernel"] == {4: 1, 5: 2, 9: 1, 11: 8}
    assert found["boot-loader"] == {5: 1, 7: 1}
    assert found["command-line"] == {9: 1}


def test_every_event_of_real_linux_logs_is_recognised():
    """Logs of GCE, RHEL, Ubuntu, Arch and workstations; what remains unknown is known to be so."""
    unknown: dict[str, set[int]] = {}
    seen = 0
    for path in sorted(corpus_folder("eventlogs").iterdir()):
        try:
            log = decode_boot_log(path.read_bytes())
        except MalformedEvidence:
            continue
        if log.registers is not RegisterKind.PCR or len(log.events) < 20:
            continue
        bank = BANK if BANK in log.algorithms else HashAlgorithm.SHA1
        split = split_components(proven(log.boots()[-1], bank=bank), ALL)
        seen += 1
        if split.unrecognised:
            unknown[path.name.rsplit("__", 1)[-1]] = set(split.unrecognised)
        assert set(split.runs) >= {Component.FIRMWARE, Component.SECURE_BOOT}
    assert seen > 15
    assert unknown == {"uefi_log.bin": {2}, "option_rom_eventlog": {11, 12, 13, 14}}


@pytest.mark.parametrize(
    ("pcr", "kind", "data"),
    [
        (0, 0x8400, b"a type of nobody"),
        (1, IPL, b"GRUB in the firmware's register"),
        (2, EventType.EFI_VARIABLE_AUTHORITY, b""),
        (4, EventType.SEPARATOR, bytes(4)),
        (4, EventType.EFI_VARIABLE_DRIVER_CONFIG, b""),
        (5, EventType.SEPARATOR, bytes(4)),
        (7, EventType.EFI_VARIABLE_DRIVER_CONFIG, b"after the separator"),
        (7, EventType.SEPARATOR, bytes(4)),
        (8, TAG, b"no string of GRUB"),
        (8, IPL, b"a string without label"),
        (8, IPL, wide("options in a boot by GRUB")),
        (9, TAG, bytes(8) + b"something else"),
        (9, EventType.EFI_ACTION, b"/vmlinuz"),
        (9, IPL, b"no path"),
        (10, IPL, b"/vmlinuz"),
        (11, EventType.COMPACT_HASH, b"\x10\0\0\0"),
        (11, IPL, wide("linux")),
        (11, IPL, b".linux"),
        (12, IPL, b"narrow"),
        (12, TAG, wide("options")),
        (13, TAG, wide("extension")),
        (14, IPL, b"something of shim's"),
        (14, TAG, b"MokList"),
        (15, IPL, b"/vmlinuz"),
        (23, IPL, b"/vmlinuz"),
    ],
)
def test_what_nobody_knows_is_unrecognised(pcr, kind, data):
    """Rule 37: an event of an unknown or misplaced type belongs to no component."""
    assert component_of(event(pcr, int(kind), data), NOWHERE) is None


@pytest.mark.parametrize(
    ("pcr", "kind", "data", "component"),
    [
        (5, EventType.EFI_GPT_EVENT, b"", Component.BOOT_LOADER),
        (5, EventType.EFI_ACTION, b"Exit Boot Services Invocation", Component.KERNEL),
        (8, IPL, b"grub_cmd: ", Component.BOOT_LOADER),
        (8, IPL, b"grub_cmd linuxefi /vmlinuz quiet", Component.COMMAND_LINE),
        (8, IPL, b"grub_cmd set x=1", Component.BOOT_LOADER),
        (8, IPL, b"kernel_cmdline: /vmlinuz quiet", Component.COMMAND_LINE),
        (9, IPL, b"grub_linux Kernel", Component.KERNEL),
        *((9, IPL, b"/boot/" + name + b"-6.1", Component.KERNEL) for name in KERNEL_FILES),
        (8, IPL, b"grub_cmd: linux16 /vmlinuz", Component.COMMAND_LINE),
        (8, IPL, b"grub_cmd: set linux=1", Component.BOOT_LOADER),
        (8, IPL, b"grub_cmd: initrd /initrd.img", Component.BOOT_LOADER),
        (8, IPL, b"module_cmdline: /boot/vmlinuz", Component.COMMAND_LINE),
        (8, IPL, b"grub_kernel_cmdline /vmlinuz", Component.COMMAND_LINE),
        (9, IPL, b"grub_linuxefi Kernel", Component.KERNEL),
        (9, IPL, b"(hd0,gpt2)/Initramfs-6.1.img\0", Component.KERNEL),
        (9, IPL, b"(hd0,gpt2)/grub/x86_64-efi/linux.mod", Component.BOOT_LOADER),
        (9, IPL, b"/boot/my-own-kernel", Component.BOOT_LOADER),
        (12, IPL, wide("quiet splash"), Component.COMMAND_LINE),
        (13, IPL, wide("extension.raw"), Component.KERNEL),
        (14, IPL, b"SbatLevel", Component.BOOT_LOADER),
    ],
)
def test_what_measured_an_event(pcr, kind, data, component):
    """One rule per register, in the words of GRUB, systemd-stub, shim and the kernel."""
    assert component_of(event(pcr, int(kind), data), NOWHERE) is component


def test_the_file_that_grub_was_told_to_start_is_the_kernel():
    """A kernel may have any name: the command that starts it names it."""
    position = Position(
        separated=True, starts_kernel=False, grub=True, kernel_files=frozenset({"/boot/my-own"})
    )
    assert component_of(event(9, IPL, b"/boot/my-own"), position) is Component.KERNEL


def renamed(commands: dict[int, bytes]):
    """The good boot, in which some events of GRUB are called otherwise."""
    return changed(good_boot(), lambda e: e._replace(data=commands.get(e.number, e.data)))


def component_at(log, number: int) -> Component:
    """The component of an event."""
    return next(
        part
        for part, registers in split_components(log, ALL).runs.items()
        for runs in registers.values()
        if any(event.number == number for run in runs for event in run.events)
    )


@pytest.mark.parametrize(
    ("commands", "number", "component"),
    [
        ({46: b"grub_cmd: initrd /one.cpio /two.cpio", 47: b"/one.cpio"}, 47, Component.KERNEL),
        ({46: b"grub_cmd: initrd /one.cpio /two.cpio", 47: b"/two.cpio"}, 47, Component.KERNEL),
        ({46: b"grub_cmd: initrd /one.cpio", 47: b"/two.cpio"}, 47, Component.BOOT_LOADER),
        ({41: b"grub_cmd: linux /mine opt=/x", 42: b"/mine"}, 42, Component.KERNEL),
        ({41: b"grub_cmd: chainloader /mine", 42: b"/mine"}, 42, Component.KERNEL),
        ({46: b"grub_cmd: initrdefi /one.cpio", 47: b"/one.cpio"}, 47, Component.KERNEL),
        ({46: b"grub_cmd: initrd16 /one.cpio", 47: b"/one.cpio"}, 47, Component.KERNEL),
        ({41: b"grub_cmd: linuxefi /mine", 42: b"/mine"}, 42, Component.KERNEL),
        ({41: b"grub_cmd: linux16 /mine", 42: b"/mine"}, 42, Component.KERNEL),
        ({41: b"grub_cmd: linux /mineX", 42: b"/mineX\0"}, 42, Component.KERNEL),
        ({41: b"grub_cmd: linux /mine /x", 42: b"/x"}, 42, Component.BOOT_LOADER),
        ({31: b"grub_cmd: source /x", 42: b"/x"}, 42, Component.BOOT_LOADER),
    ],
)
def test_files_that_a_command_passes_on(commands, number, component):
    """All that ``initrd`` names, of ``linux`` the file it starts and not its arguments, of others none."""
    assert component_at(renamed(commands), number) is component


def test_a_separator_counts_by_its_digest():
    """Rule 41: a renamed separator still separates; one that only claims to be one does not."""
    log = good_boot()
    renamed = changed(
        log, lambda e: e._replace(type=int(EventType.EFI_ACTION)) if e.number == 19 else e
    )
    assert counts(renamed, (4,)) == counts(log, (4,))
    forged = changed(log, lambda e: e._replace(data=b"\x01\0\0\0") if e.number == 19 else e)
    assert [each.number for each in split_components(forged, (4,)).unrecognised[4]] == [19]


def test_images_of_a_log_without_grub():
    """The last image and its repetitions are the kernel, the ones before are boot loaders."""
    quiet = changed(good_boot(), lambda e: None if e.pcr in {8, 9} else e)
    assert counts(quiet, (4,)) == {"firmware": {4: 2}, "boot-loader": {4: 2}, "kernel": {4: 2}}


def test_a_kernel_that_was_started_before_a_boot_loader_is_none():
    """Only repetitions at the end are the kernel: what starts another image after it is a boot loader."""
    quiet = changed(good_boot(), lambda e: None if e.pcr in {8, 9} else e)
    last = quiet.digest(next(e for e in quiet.events if e.number == 44))
    odd = changed(quiet, lambda e: with_digest(quiet, e, last) if e.number == 24 else e)
    assert counts(odd, (4,)) == {"firmware": {4: 2}, "boot-loader": {4: 2}, "kernel": {4: 2}}


def test_grub_that_starts_nothing_has_no_kernel():
    """An image is the kernel only after GRUB's command to start one."""
    idle = changed(good_boot(), lambda e: None if e.data.startswith(b"grub_cmd: linux") else e)
    assert "kernel" not in counts(idle, (4,))


def test_registers_of_a_confidential_vm_are_not_pcrs():
    """Rule 46: nothing of an RTMR is a component of a boot measured into PCRs."""
    path = corpus_folder("eventlogs") / "go-eventlog__testdata__eventlogs__ccel__event_log.bin"
    log = decode_boot_log(path.read_bytes())
    (bank,) = log.algorithms
    values = {pcr: value for pcr in range(4) if (value := replay(log, bank).value(pcr))}
    verified = verify_boot_log(log, values, bank=bank, pcrs=values, registers=RegisterKind.RTMR)
    assert verified.events
    split = split_components(verified, ALL)
    assert (dict(split.runs), dict(split.unrecognised)) == ({}, {})


def test_what_every_boot_has():
    """A component can't be left out: what the asked registers would show is required."""
    log = good_boot()
    assert split_components(log, (14,)).required == frozenset()
    assert split_components(log, (0,)).required == {Component.FIRMWARE}
    assert split_components(log, (7,)).required == {Component.SECURE_BOOT}
    assert split_components(log, (9,)).required == {Component.KERNEL}
    assert split_components(log, (4, 7)).required == {
        Component.FIRMWARE,
        Component.SECURE_BOOT,
        Component.KERNEL,
    }
