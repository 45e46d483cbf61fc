"""Which component of a boot measured an event: firmware, Secure Boot, boot loader, kernel, command line.

Trusts on entry: a ``VerifiedBootLog``, and of it only digests and their order per PCR. Types, names and the
order across PCRs are hints that no digest covers (pitfalls 37, 38); they choose the component, and nothing
else. That is safe because of how baselines compare: whatever the split says, a boot passes only when the
runs of all components together are exactly the approved digests of each PCR in their approved order, so
a wrong hint can turn a pass into a failure, never a failure into a pass.
Guarantees on exit: each event of the registers asked for is in exactly one component, or unrecognised.

Source: TCG PC Client Platform Firmware Profile 1.06, section 3.3.4 (PCR usage); GRUB
grub-core/commands/efi/tpm.c; systemd src/boot/measure.c; Linux drivers/firmware/efi/libstub.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trustauthority.appraisal.bootfacts import EXPECTED_TYPES
from trustauthority.codec.efi_text import byte_text, looks_like_utf16
from trustauthority.model.baseline import Component
from trustauthority.model.bootlog import BootEvent, EventType, RegisterKind
from trustauthority.verification.banks import hash_constructor
from trustauthority.verification.replay import VerifiedBootLog

SECURE_BOOT_PCR = 7
_FIRMWARE_PCRS = frozenset({0, 1, 2, 3, 6})
_IMAGES_PCR = 4
_KERNEL_PCRS = frozenset({4, 9, 11})
_SEPARATORS = (b"\0\0\0\0", b"\xff\xff\xff\xff")
_GRUB_COMMANDS = (b"grub_cmd: ", b"grub_cmd ")
_COMMAND_LINES = (b"kernel_cmdline: ", b"module_cmdline: ", b"grub_kernel_cmdline ")
_GRUB_FILES = (b"grub_linuxefi ", b"grub_linux ")
_KERNEL_ARGUMENT = frozenset({b"linux", b"linuxefi", b"linux16"})
_STARTING = _KERNEL_ARGUMENT | {b"chainloader"}
_READING = _STARTING | {b"initrd", b"initrdefi", b"initrd16"}
_KERNEL_NAMES = ("vmlinuz", "vmlinux", "bzimage", "initrd", "initramfs")
_IMAGE = int(EventType.EFI_BOOT_SERVICES_APPLICATION)
_SEPARATOR = int(EventType.SEPARATOR)
_AUTHORITY = int(EventType.EFI_VARIABLE_AUTHORITY)
_ACTION = int(EventType.EFI_ACTION)
_IPL = int(EventType.IPL)
_TAG = int(EventType.EVENT_TAG)
_TAG_HEADER = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where an event stands: what the events around it say about it."""

    separated: bool
    """The firmware's separator of this PCR came before: what follows is not the firmware's."""
    starts_kernel: bool
    """For an image: it is the last one that was started, or GRUB's command to start it came before."""
    grub: bool
    """The log has GRUB's own measurements."""
    kernel_files: frozenset[str]
    """Files that GRUB was told to start or to pass on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Events of one component that follow each other in a PCR."""

    after: Component | None
    events: tuple[BootEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentLog:
    """A verified log by component. Constructed in ``split_components`` only."""

    log: VerifiedBootLog
    pcrs: frozenset[int]
    """The registers that were asked for."""
    runs: Mapping[Component, Mapping[int, tuple[Run, ...]]]
    """Components that occur → PCR → runs in order."""
    unrecognised: Mapping[int, tuple[BootEvent, ...]]
    """Register → events of no component: such a register proves no claim."""

    @property
    def required(self) -> frozenset[Component]:
        """Components that every boot has, as far as the registers show them."""
        found = set()
        if self.pcrs & (_FIRMWARE_PCRS | {_IMAGES_PCR, 5}):
            found.add(Component.FIRMWARE)
        if SECURE_BOOT_PCR in self.pcrs:
            found.add(Component.SECURE_BOOT)
        if self.pcrs & _KERNEL_PCRS:
            found.add(Component.KERNEL)
        return frozenset(found)

    def runs_of(self, component: Component, pcr: int) -> tuple[Run, ...]:
        """The runs of a component in a register; none where it measured nothing."""
        return self.runs.get(component, {}).get(pcr, ())


def split_components(log: VerifiedBootLog, pcrs: Iterable[int]) -> ComponentLog:
    """Say which component measured each event of ``pcrs``."""
    asked = frozenset(pcrs)
    runs: dict[Component, dict[int, list[tuple[Component | None, list[BootEvent]]]]] = {}
    unrecognised: dict[int, list[BootEvent]] = {}
    last: dict[int, Component] = {}
    for event, position in _positions(log):
        pcr = event.pcr
        if pcr not in asked:
            continue
        component = component_of(event, position)
        if component is None:
            unrecognised.setdefault(pcr, []).append(event)
            continue
        found = runs.setdefault(component, {}).setdefault(pcr, [])
        if found and last[pcr] is component:
            found[-1][1].append(event)
        else:
            found.append((last.get(pcr), [event]))
        last[pcr] = component
    return ComponentLog(
        log=log,
        pcrs=asked,
        runs=MappingProxyType(
            {
                component: MappingProxyType(
                    {
                        pcr: tuple(Run(after=after, events=tuple(events)) for after, events in each)
                        for pcr, each in registers.items()
                    }
                )
                for component, registers in runs.items()
            }
        ),
        unrecognised=MappingProxyType({pcr: tuple(events) for pcr, events in unrecognised.items()}),
    )


def component_of(event: BootEvent, position: Position) -> Component | None:
    """The component that measured an event, or None for one that is not recognised."""
    expected = EXPECTED_TYPES.get(event.pcr)
    if expected is not None and event.type not in expected:
        return None
    if event.pcr in _FIRMWARE_PCRS:
        return Component.FIRMWARE
    rule = _RULES.get(event.pcr)
    return None if rule is None else rule(event, position)


# --- what surrounds an event -----------------------------------------------------------------


def _positions(log: VerifiedBootLog) -> Iterable[tuple[BootEvent, Position]]:
    """Every event with its position. A separator counts where its digest proves it, as what it closes."""
    if log.registers is not RegisterKind.PCR:
        return  # RTMRs are no PCRs: nothing of a CCEL is recognised here (pitfalls 46)
    digest_of, bank = hash_constructor(log.bank), log.position
    separators = {digest_of(data).digest() for data in _SEPARATORS}
    commands = tuple(
        (event.number, command)
        for event in log.events
        if event.type == _IPL and (command := _grub_command(event.data)) is not None
    )
    separated: set[int] = set()
    placed: list[tuple[BootEvent, bool]] = []
    for event in log.events:
        pcr = event.pcr
        placed.append((event, pcr in separated))
        if pcr <= SECURE_BOOT_PCR and event.digests[bank] in separators:
            separated.add(pcr)
    kernels = _kernel_images(log, placed, commands)
    files = frozenset(path for _, command in commands for path in _files(command))
    known = {
        (after, kernel): Position(
            separated=after, starts_kernel=kernel, grub=bool(commands), kernel_files=files
        )
        for after in (False, True)
        for kernel in (False, True)
    }
    for event, after in placed:
        yield event, known[after, event.number in kernels]


def _kernel_images(
    log: VerifiedBootLog,
    placed: Iterable[tuple[BootEvent, bool]],
    commands: tuple[tuple[int, bytes], ...],
) -> frozenset[int]:
    """Which images are the kernel: those that GRUB started, else the last one and its repetitions."""
    images = [
        event
        for event, separated in placed
        if separated and event.pcr == _IMAGES_PCR and event.type == _IMAGE
    ]
    if commands:
        started = [number for number, command in commands if _verb(command) in _STARTING]
        return frozenset(event.number for event in images if started and event.number > started[0])
    kernels: set[int] = set()
    for event in reversed(images):
        if log.digest(event) != log.digest(images[-1]):
            break
        kernels.add(event.number)
    return frozenset(kernels)


def _grub_command(data: bytes) -> bytes | None:
    """The text of a GRUB command, which may be empty. None for other data."""
    if not data.startswith(_GRUB_COMMANDS):
        return None
    return data.split(b" ", 1)[1]


def _verb(command: bytes) -> bytes:
    return command.split(b" ", 1)[0].rstrip(b"\0")


def _files(command: bytes) -> tuple[str, ...]:
    """The files that a command names: the one it starts, or all that it passes on."""
    verb = _verb(command)
    if verb not in _READING:
        return ()
    words = tuple(byte_text(command).split(" "))
    return words[1:2] if verb in _STARTING else words[1:]


# --- one rule per PCR ------------------------------------------------------------------------


def _closes(event: BootEvent, position: Position) -> Component | None:
    """What firmware measured up to its separator; a second separator is nobody's."""
    if event.type == _SEPARATOR and (position.separated or event.data not in _SEPARATORS):
        return None
    return None if position.separated else Component.FIRMWARE


def _images(event: BootEvent, position: Position) -> Component | None:
    if not position.separated or event.type == _SEPARATOR:
        return _closes(event, position)
    return Component.KERNEL if position.starts_kernel else Component.BOOT_LOADER


def _partitions(event: BootEvent, position: Position) -> Component | None:
    if not position.separated or event.type == _SEPARATOR:
        return _closes(event, position)
    # the kernel leaves boot services, and firmware says so
    return Component.KERNEL if event.type == _ACTION else Component.BOOT_LOADER


def _secure_boot(event: BootEvent, position: Position) -> Component | None:
    if not position.separated:
        return Component.SECURE_BOOT
    return Component.BOOT_LOADER if event.type == _AUTHORITY else None


def _commands(event: BootEvent, position: Position) -> Component | None:
    if event.type != _IPL:
        return None
    command = _grub_command(event.data)
    if command is not None:
        line = _verb(command) in _KERNEL_ARGUMENT
        return Component.COMMAND_LINE if line else Component.BOOT_LOADER
    if event.data.startswith(_COMMAND_LINES):
        return Component.COMMAND_LINE
    # systemd-boot measured the options here before version 251
    return Component.COMMAND_LINE if _is_wide(event) and not position.grub else None


def _files_read(event: BootEvent, position: Position) -> Component | None:
    if event.type == _TAG:
        return _kernel_tag(event.data[_TAG_HEADER:])
    if event.type == _IPL:
        return _grub_file(event, position)
    return None


def _kernel_tag(text: bytes) -> Component | None:
    """What the kernel's EFI stub measures by itself."""
    if text.startswith(b"LOADED_IMAGE::LoadOptions"):
        return Component.COMMAND_LINE
    return Component.KERNEL if text.startswith(b"Linux initrd") else None


def _grub_file(event: BootEvent, position: Position) -> Component | None:
    if event.data.startswith(_GRUB_FILES):
        return Component.KERNEL
    name = byte_text(event.data.rstrip(b"\0"))
    if not name.startswith(("/", "(")):
        return None
    file = name.rsplit("/", 1)[-1].lower()
    if name in position.kernel_files or file.startswith(_KERNEL_NAMES):
        return Component.KERNEL
    return Component.BOOT_LOADER


def _sections(event: BootEvent, _: Position) -> Component | None:
    """Sections of a unified kernel image, by name and by content."""
    return Component.KERNEL if _is_wide(event) and event.data.startswith(b".") else None


def _options(event: BootEvent, _: Position) -> Component | None:
    """What systemd-stub passes to the kernel besides the image: an overridden command line, credentials."""
    return Component.COMMAND_LINE if _is_wide(event) else None


def _extensions(event: BootEvent, _: Position) -> Component | None:
    """Extensions of the initrd that systemd-stub passes on."""
    return Component.KERNEL if _is_wide(event) else None


def _is_wide(event: BootEvent) -> bool:
    """Whether this is how systemd's loaders name what they measure; some drop the last byte."""
    return event.type == _IPL and looks_like_utf16(event.data[: len(event.data) & ~1])


def _shim(event: BootEvent, _: Position) -> Component | None:
    named = event.type == _IPL and event.data.startswith((b"Mok", b"Sbat", b"SBAT"))
    return Component.BOOT_LOADER if named else None


_RULES: Mapping[int, Callable[[BootEvent, Position], Component | None]] = MappingProxyType(
    {
        4: _images,
        5: _partitions,
        7: _secure_boot,
        8: _commands,
        9: _files_read,
        11: _sections,
        12: _options,
        13: _extensions,
        14: _shim,
    }
)
