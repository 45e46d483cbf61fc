"""Predicts what an announced update will measure: a known boot, with new digests in the same places.

What it trusts: variants of a boot that was verified, and digests of new files that the caller vouches for. What it
guarantees: a prediction changes digests only, never which events there are or their order; it refuses what it can't
explain. Nothing is in force by it, and a wrong prediction matches no boot. Only rules that real boots confirmed are
used: Authenticode hashes in PCR 4, GRUB's files and strings in PCR 9 and 8, sections of systemd-stub in PCR 11, the
kernel's own load options and initrd in PCR 9.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from trustauthority.errors import FailedPrecondition
from trustauthority.model.baseline import Baseline, Component, ExpectedEvent, ExpectedRun
from trustauthority.model.bootlog import EventType, event_type_name
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.prediction import Prediction, UpdatedFile
from trustauthority.verification.banks import hash_constructor

_FILE = "boot loader: "
_COMMAND = "GRUB command: "
_LINE = "kernel command line: "
_INITRD = "tagged event: Linux initrd"
_OPTIONS = "tagged event: LOADED_IMAGE::LoadOptions"
_APPLICATION = event_type_name(EventType.EFI_BOOT_SERVICES_APPLICATION)
_IPL = event_type_name(EventType.IPL)
_SECTIONS = frozenset({".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb"})
"""Sections that every systemd-stub which knows them measures."""

_Select = Callable[[ExpectedEvent], bool]


def predict_update(
    base: Mapping[Component, Baseline],
    *,
    name: str,
    files: Iterable[UpdatedFile],
    command_line: str = "",
) -> Prediction:
    """Say what a boot will measure after an update.

    Args:
        base: the boot before it, by component.
        name: name of the new variants.
        files: what is replaced.
        command_line: the new kernel command line without the kernel's path; empty for the old one.

    Raises:
        FailedPrecondition: the base does not show where a change would be measured.
    """
    if not base:
        raise FailedPrecondition("there is no boot to start from")
    draft = _Draft(base)
    given = tuple(files)
    for file in given:
        _ROLES.get(file.role, _named_file)(draft, file)
    if command_line:
        _command_line(draft, command_line, {file.role for file in given})
    if not draft.changed:
        raise FailedPrecondition("nothing is replaced: name a file or a command line")
    after = {part: replace(made, name=name) for part, made in draft.parts.items()}
    registers = {
        pcr: value
        for pcr in sorted({pcr for _, pcr in draft.changed})
        if (value := compose_register(after, pcr)) is not None
    }
    parts = {part for part, _ in draft.changed}
    return Prediction(
        bank=draft.bank.value,
        variants=tuple(after[part] for part in Component if part in parts),
        registers=registers,
    )


def compose_register(parts: Mapping[Component, Baseline], pcr: int) -> str | None:
    """The value of a PCR after the runs of all components; None when they do not fit together.

    PCR 0 starts at a value that depends on the firmware, and is never composed.
    """
    if pcr == 0:
        return None
    waiting = {part: list(made.pcrs.get(pcr, ())) for part, made in parts.items()}
    bank = HashAlgorithm(next(iter(parts.values())).bank)
    digest_of = hash_constructor(bank)
    value, last = bytes(bank.size), None
    for _ in range(sum(len(runs) for runs in waiting.values())):
        following = [part for part, runs in waiting.items() if runs and runs[0].after is last]
        if len(following) != 1:
            return None
        last = following[0]
        for event in waiting[last].pop(0).events:
            value = digest_of(value + bytes.fromhex(event.digest)).digest()
    return value.hex()


class _Draft:
    """The variants, while digests in them are exchanged."""

    def __init__(self, base: Mapping[Component, Baseline]) -> None:
        self.parts = dict(base)
        self.bank = HashAlgorithm(next(iter(base.values())).bank)
        self.changed: set[tuple[Component, int]] = set()

    def hash(self, data: bytes) -> str:
        """Hex digest in the bank."""
        return bytes(hash_constructor(self.bank)(data).digest()).hex()

    def events(self, part: Component, pcr: int) -> tuple[ExpectedEvent, ...]:
        """The events of a component in a register; none where it is not known."""
        if part not in self.parts:
            return ()
        return tuple(e for run in self.parts[part].pcrs.get(pcr, ()) for e in run.events)

    def exchange(
        self, part: Component, pcr: int, change: Callable[[int, ExpectedEvent], ExpectedEvent]
    ) -> None:
        """Put other events into the same places; ``change`` gets the position in the register."""
        old = self.parts[part]
        position, runs = 0, []
        for run in old.pcrs[pcr]:
            made = []
            for event in run.events:
                made.append(change(position, event))
                position += 1
            runs.append(ExpectedRun(after=run.after, events=tuple(made)))
        self.parts[part] = replace(old, pcrs={**old.pcrs, pcr: tuple(runs)})
        self.changed.add((part, pcr))

    def replace_where(self, part: Component, pcr: int, select: _Select, digest: str) -> bool:
        """Give all selected events a digest; says whether there are any."""
        found = any(select(event) for event in self.events(part, pcr))
        if found:
            self.exchange(
                part,
                pcr,
                lambda _, event: replace(event, digest=digest) if select(event) else event,
            )
        return found


# --- files -----------------------------------------------------------------------------------


def _kernel(draft: _Draft, file: UpdatedFile) -> None:
    """The image in PCR 4, and what its loader says of the file in PCR 9 or of its sections in PCR 11."""
    if draft.events(Component.KERNEL, 4):
        draft.replace_where(Component.KERNEL, 4, _is_image, _image_of(file))
    if draft.events(Component.KERNEL, 11):
        _unified(draft, file)
        return
    path = _kernel_path(draft)
    done = draft.replace_where(
        Component.KERNEL, 9, lambda event: _path_of(event) == path, file.digest
    )
    if not done and not draft.events(Component.KERNEL, 4):
        raise FailedPrecondition("kernel: the base does not show which file the kernel is")


def _unified(draft: _Draft, file: UpdatedFile) -> None:
    """Sections by name and content, in the order of the stub; its initrd and its command line again."""
    events = draft.events(Component.KERNEL, 11)
    names = [_path_of(event) for event in events]
    if names[0::2] != names[1::2] or any(
        draft.hash(name.encode() + b"\0") != event.digest
        for name, event in zip(names[0::2], events[0::2], strict=False)
    ):
        raise FailedPrecondition("kernel: PCR 11 of the base is not what systemd-stub measures")
    missing = [name for name in names[0::2] if name not in file.sections]
    added = sorted((_SECTIONS & file.sections.keys()) - set(names))
    if missing or added:
        raise FailedPrecondition(
            "kernel: the sections are not those of the base; boot one host and capture it"
            f" (missing: {', '.join(missing) or 'none'}; new: {', '.join(added) or 'none'})"
        )
    if draft.events(Component.COMMAND_LINE, 12) or draft.events(Component.KERNEL, 13):
        raise FailedPrecondition("kernel: with credentials or extensions PCR 9 can't be predicted")
    draft.exchange(
        Component.KERNEL,
        11,
        lambda at, event: replace(event, digest=file.sections[names[at]]) if at % 2 else event,
    )
    if ".initrd" in names:
        draft.replace_where(
            Component.KERNEL, 9, lambda event: event.meaning == _INITRD, file.sections[".initrd"]
        )
    if ".cmdline" in names:
        draft.replace_where(
            Component.COMMAND_LINE, 9, lambda event: event.meaning == _OPTIONS, file.load_options
        )


def _initrd(draft: _Draft, file: UpdatedFile) -> None:
    if draft.events(Component.KERNEL, 11):
        raise FailedPrecondition(
            "initrd: it is a section of the unified kernel image; replace that"
        )
    kernel = _kernel_path(draft)
    paths = {_path_of(event) for event in draft.events(Component.KERNEL, 9)} - {kernel, ""}
    if len(paths) > 1:
        raise FailedPrecondition(f"initrd: which one of {', '.join(sorted(paths))}? Give the path")
    if not draft.replace_where(
        Component.KERNEL,
        9,
        lambda event: _path_of(event) in paths or event.meaning == _INITRD,
        file.digest,
    ):
        raise FailedPrecondition("initrd: the base measures none in PCR 9")


def _boot_loader(draft: _Draft, file: UpdatedFile) -> None:
    """Shim is the first image and the boot loader is the last one before the kernel."""
    images = [
        position
        for position, event in enumerate(draft.events(Component.BOOT_LOADER, 4))
        if _is_image(event)
    ]
    if len(images) < (2 if file.role == "shim" else 1):
        raise FailedPrecondition(
            f"{file.role}: the base starts none before the kernel;"
            " a unified kernel image is replaced as kernel"
        )
    place = images[0] if file.role == "shim" else images[-1]
    digest = _image_of(file)
    draft.exchange(
        Component.BOOT_LOADER,
        4,
        lambda at, event: replace(event, digest=digest) if at == place else event,
    )


def _named_file(draft: _Draft, file: UpdatedFile) -> None:
    """A file that GRUB reads, by the path that GRUB gives it."""
    done = [
        draft.replace_where(part, 9, lambda event: _path_of(event) == file.role, file.digest)
        for part in (Component.BOOT_LOADER, Component.KERNEL)
    ]
    if not any(done):
        raise FailedPrecondition(
            f"{file.role}: neither kernel, initrd, boot-loader or shim, nor a file in PCR 9 of the base"
        )


_ROLES: Mapping[str, Callable[[_Draft, UpdatedFile], None]] = {
    "kernel": _kernel,
    "initrd": _initrd,
    "boot-loader": _boot_loader,
    "shim": _boot_loader,
}


def _image_of(file: UpdatedFile) -> str:
    if not file.image_digest:
        raise FailedPrecondition(f"{file.role}: the file is no EFI executable")
    return file.image_digest


def _is_image(event: ExpectedEvent) -> bool:
    return event.type == _APPLICATION


def _path_of(event: ExpectedEvent) -> str:
    """What a boot loader called the file or section that it measured; empty for other events."""
    named = event.type == _IPL and event.meaning.startswith(_FILE)
    return event.meaning.removeprefix(_FILE) if named else ""


# --- the command line ------------------------------------------------------------------------


def _kernel_line(draft: _Draft) -> tuple[str, str] | None:
    """Path and options of the kernel as GRUB passed them; None for other loaders."""
    for event in draft.events(Component.COMMAND_LINE, 8):
        if event.meaning.startswith(_LINE):
            path, _, options = event.meaning.removeprefix(_LINE).partition(" ")
            return path, options
    return None


def _kernel_path(draft: _Draft) -> str | None:
    line = _kernel_line(draft)
    return None if line is None else line[0]


def _command_line(draft: _Draft, text: str, replaced: set[str]) -> None:
    if draft.events(Component.KERNEL, 11):
        raise FailedPrecondition("the command line is a section of the unified kernel image")
    line = _kernel_line(draft)
    if line is None:
        options = text.encode("utf-16-le") + b"\0\0"
        if not draft.replace_where(
            Component.COMMAND_LINE,
            9,
            lambda event: event.meaning == _OPTIONS,
            draft.hash(options),
        ):
            raise FailedPrecondition("the base measures no command line that is known here")
        return
    files = [_path_of(event) for event in draft.events(Component.BOOT_LOADER, 9)]
    sources = [path for path in files if path.endswith((".cfg", ".conf"))]
    if not set(sources) & replaced:
        raise FailedPrecondition(
            "GRUB measures the file in which the command line stands: replace it as well"
            f" ({', '.join(sources) or 'none is known'})"
        )
    old, new = " ".join(line), f"{line[0]} {text}"
    for part in (Component.COMMAND_LINE, Component.BOOT_LOADER):
        if any(old in event.meaning for event in draft.events(part, 8)):
            draft.exchange(part, 8, lambda _, event: _with_line(draft, event, old, new))


def _with_line(draft: _Draft, event: ExpectedEvent, old: str, new: str) -> ExpectedEvent:
    """A string of GRUB with another command line; its old text must be what was hashed."""
    label = next((each for each in (_COMMAND, _LINE) if event.meaning.startswith(each)), None)
    if label is None or old not in event.meaning:
        return event
    text = event.meaning.removeprefix(label)
    for encode in (_as_shown, _with_newlines):
        if draft.hash(encode(text)) == event.digest:
            made = text.replace(old, new)
            return replace(event, digest=draft.hash(encode(made)), meaning=label + made)
    raise FailedPrecondition(f"the text that was measured is not known in full: {text[:80]}")


def _as_shown(text: str) -> bytes:
    return text.encode()


def _with_newlines(text: str) -> bytes:
    return text.replace("\\n", "\n").replace("\\t", "\t").encode()
