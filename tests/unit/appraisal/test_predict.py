"""Predicted updates, held against boots that really happened after such an update."""

import hashlib
from dataclasses import replace

import pytest
from support.variants import (
    BOOTS,
    CAPTURES,
    PCRS,
    boot_log,
    changed,
    good_boot,
    proven,
    variants,
    with_digest,
)

from trustauthority.appraisal.alternatives import judge_boot
from trustauthority.appraisal.predict import compose_register, predict_update
from trustauthority.errors import FailedPrecondition
from trustauthority.model.baseline import Component
from trustauthority.model.policy import BootPolicy
from trustauthority.model.prediction import UpdatedFile
from trustauthority.model.verdict import first_failure

CFG = "(hd0,gpt1)/EFI/debian/grub.cfg"
GOOD = good_boot()
BASE = {each.component: each for each in variants(GOOD)}


def digest_of(log, pcr: int, text: bytes) -> str:
    """The logged digest of the first event of a register whose data begins with a text."""
    return log.digest(next(e for e in log.events if e.pcr == pcr and e.data.startswith(text))).hex()


def image(log, position: int) -> str:
    """The digest of an image in PCR 4: shim, GRUB, kernel."""
    return log.digest([e for e in log.events if e.pcr == 4][2 + position]).hex()


def file(role: str, digest: str = "aa" * 32, **more) -> UpdatedFile:
    """A file of an update."""
    return UpdatedFile(role=role, digest=digest, **more)


def predict(*files: UpdatedFile, base=BASE, **more):
    """A prediction from the good boot."""
    return predict_update(base, name="next", files=files, **more)


def kernel_update(log) -> tuple[UpdatedFile, ...]:
    """The kernel package of another boot: what its files hash to."""
    return (
        file("kernel", digest_of(log, 9, b"/vmlinuz"), image_digest=image(log, 2)),
        file("initrd", digest_of(log, 9, b"/initrd.img")),
    )


def uki() -> tuple:
    """A boot of a unified kernel image, and its variants."""
    if not CAPTURES.is_dir():
        pytest.skip("the shared captures are not beside the project")
    log = proven(boot_log(CAPTURES / "uki-snakeoil-secureboot"))
    return log, {each.component: each for each in variants(log)}


def sections(log) -> dict[str, str]:
    """The content digests of the sections that a stub measured."""
    events = log.in_register(11)
    return {e.data.decode("utf-16-le").rstrip("\0"): log.digest(e).hex() for e in events[1::2]}


# --- predictions that came true --------------------------------------------------------------


def test_a_kernel_update_is_predicted_before_it_boots():
    """PCR 4 and 9 of the boot with the other kernel, from the good boot and the new files."""
    new = good_boot("other-kernel-build")
    found = predict(*kernel_update(new))
    assert found.registers == {4: new.values[4].hex(), 9: new.values[9].hex()}
    assert [(each.component, each.name) for each in found.variants] == [(Component.KERNEL, "next")]
    approved = (*BASE.values(), *found.variants)
    judged = judge_boot(new, approved, BootPolicy(baseline_pcrs=PCRS), host_class="")
    assert first_failure(judged.checks) is None
    assert [each.name for each in judged.matched].count("next") == 1


def test_a_changed_command_line_is_predicted():
    """PCR 8 and 9 of the boot with one more argument, from its text and the new grub.cfg."""
    new = good_boot("changed-cmdline")
    line = (BOOTS / "changed-cmdline" / "cmdline").read_text().strip().partition(" ")[2]
    found = predict(file(CFG, digest_of(new, 9, CFG.encode())), command_line=line)
    assert found.registers == {8: new.values[8].hex(), 9: new.values[9].hex()}
    assert {each.component for each in found.variants} == {
        Component.BOOT_LOADER,
        Component.COMMAND_LINE,
    }
    approved = (*BASE.values(), *found.variants)
    judged = judge_boot(new, approved, BootPolicy(baseline_pcrs=PCRS), host_class="")
    assert judged.complete


def test_a_command_line_that_stands_in_no_menu_entry():
    """GRUB's variables hide it there: only the strings that hold it change."""
    quiet = changed(GOOD, lambda e: None if b"grub_cmd: menuentry" in e.data else e)
    found = predict(file(CFG), base=base_of(quiet), command_line="quiet")
    assert {(each.component, pcr) for each in found.variants for pcr in (8, 9)} >= {
        (Component.COMMAND_LINE, 8)
    }
    assert set(found.registers) == {8, 9}


def test_a_menu_entry_over_several_lines():
    """GRUB hashes line ends and tabs, which are shown as letters."""
    old = "/vmlinuz quiet"
    text = f"menuentry x {{\n\tlinux {old}\n}}"

    def entry(event, line: str):
        if event.number == 45:
            data = b"kernel_cmdline: " + line.encode() + b"\0"
        elif event.number == 39:
            data = b"grub_cmd: " + text.replace(old, line).encode() + b"\0"
        else:
            return event if event.number != 41 else None
        made = with_digest(GOOD, event, hashlib.sha256(data.split(b": ", 1)[1][:-1]).digest())
        return made._replace(data=data)

    before = changed(GOOD, lambda e: entry(e, old))
    after = changed(GOOD, lambda e: entry(e, "/vmlinuz verbose"))
    found = predict(file(CFG), base=base_of(before), command_line="verbose")
    assert found.registers[8] == compose_register(base_of(after), 8)
    assert found.registers[8] != compose_register(base_of(before), 8)


def test_load_options_are_predicted():
    """A kernel that measures its own options: UTF-16 with a final NUL, as two real boots show."""
    old = good_boot("secureboot-off")
    base = {each.component: each for each in variants(old)}
    line = (BOOTS / "secureboot-off" / "cmdline").read_text().strip()
    same = predict(base=base, command_line=line)
    assert same.registers == {9: old.values[9].hex()}
    assert predict(base=base, command_line=line + " x").registers[9] != old.values[9].hex()


def test_composing_gives_the_registers_of_the_boot():
    """The runs of the components fit together in one way: the values that were quoted."""
    for pcr in PCRS:
        if pcr not in {0, 11, 12}:
            assert compose_register(BASE, pcr) == GOOD.values[pcr].hex()
    assert compose_register(BASE, 0) is None
    log, base = uki()
    for pcr in (4, 7, 9, 11):
        assert compose_register(base, pcr) == log.values[pcr].hex()


def test_a_unified_kernel_image_is_predicted():
    """The same sections again give the same registers; each other section changes PCR 11."""
    log, base = uki()
    cmdline = (CAPTURES / "uki-snakeoil-secureboot" / "cmdline").read_text().strip()
    options = hashlib.sha256(cmdline.encode("utf-16-le") + b"\0\0").hexdigest()
    (started,) = [log.digest(e).hex() for e in log.in_register(4)[2:]]
    same = file("kernel", image_digest=started, sections=sections(log), load_options=options)
    found = predict(same, base=base)
    assert found.registers == {pcr: log.values[pcr].hex() for pcr in (4, 9, 11)}
    asked = replace(same, load_options="dd" * 32)
    changed_line = changed(
        log,
        lambda e: with_digest(log, e, b"\xdd" * 32) if b"LoadOptions" in e.data else e,
    )
    expected = compose_register(base_of(changed_line), 9)
    assert predict(asked, base=base).registers == {**found.registers, 9: expected}
    other = replace(same, sections={**same.sections, ".initrd": "bb" * 32})
    values = predict(other, base=base).registers
    assert values[4] == log.values[4].hex()
    assert values[9] != log.values[9].hex()
    assert values[11] != log.values[11].hex()


def test_boot_loader_and_shim_are_told_apart():
    """The first image is shim, the last one before the kernel is GRUB."""
    old = {role: image(GOOD, position) for position, role in enumerate(("shim", "boot-loader"))}
    for role, digest in old.items():
        same = predict(file(role, image_digest=digest))
        assert same.registers == {4: GOOD.values[4].hex()}
        assert predict(file(role, image_digest="cc" * 32)).registers[4] != GOOD.values[4].hex()
    swapped = predict(file("shim", image_digest=old["boot-loader"]))
    assert swapped.registers[4] != GOOD.values[4].hex()


def test_a_boot_loader_without_shim():
    """One image before the kernel is the boot loader, and there is no shim to replace."""
    bare = changed(GOOD, lambda e: None if e.number == 24 else e)
    found = predict(file("boot-loader", image_digest=image(GOOD, 1)), base=base_of(bare))
    assert found.registers == {4: compose_register(base_of(bare), 4)}


# --- what can't be explained is refused ------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "line", "why"),
    [
        ((), "", "nothing is replaced"),
        ((file("kernel"),), "", "no EFI executable"),
        ((file("shim"),), "", "no EFI executable"),
        ((file("grub.cfg"),), "", "nor a file in PCR 9"),
        ((file(""),), "", "nor a file in PCR 9"),
        ((), "quiet", "replace it as well"),
        ((file("initrd"),), "quiet", "replace it as well"),
    ],
)
def test_what_is_not_given_is_asked_for(files, line, why):
    """A half prediction would match nothing, and look like an attack on the day of the update."""
    with pytest.raises(FailedPrecondition, match=why):
        predict(*files, command_line=line)


def without(*parts: Component) -> dict:
    """The base without components."""
    return {part: each for part, each in BASE.items() if part not in parts}


def base_of(log) -> dict:
    """The variants of a log."""
    return {each.component: each for each in variants(log)}


@pytest.mark.parametrize(
    ("base", "files", "why"),
    [
        ({}, (file("kernel"),), "no boot to start from"),
        (without(Component.KERNEL), (file("kernel"),), "which file the kernel is"),
        (
            base_of(
                changed(
                    GOOD,
                    lambda e: None if e.number in {43, 44} or e.data.startswith(b"/vmlinuz") else e,
                )
            ),
            (file("kernel"),),
            "which file the kernel is",
        ),
        (without(Component.KERNEL), (file("initrd"),), "measures none"),
        (
            base_of(changed(GOOD, lambda e: None if e.number == 24 else e)),
            (file("shim", image_digest="cc" * 32),),
            "starts none before the kernel",
        ),
        (without(Component.BOOT_LOADER), (file("boot-loader"),), "replaced as kernel"),
        (
            base_of(
                changed(GOOD, lambda e: e._replace(data=b"/vmlinuz-b") if e.number == 42 else e)
            ),
            (file("initrd"),),
            r"which one of /initrd.img, /vmlinuz-b\?",
        ),
    ],
)
def test_a_base_that_does_not_show_the_place_is_refused(base, files, why):
    """What the base does not measure can't be replaced in it."""
    with pytest.raises(FailedPrecondition, match=why):
        predict(*files, base=base)


@pytest.mark.parametrize(
    ("name", "good"),
    [("/loader/entries/a.conf", True), ("/grub/grub.cfg", True), ("/grub/normal.mod", False)],
)
def test_the_file_with_the_command_line_is_a_configuration(name, good):
    """GRUB reads the line from a file that it measures: another file replaced does not explain it."""
    named = changed(GOOD, lambda e: e._replace(data=name.encode()) if e.number == 35 else e)
    given = file(name, "ab" * 32)
    if good:
        found = predict(given, base=base_of(named), command_line="quiet")
        assert set(found.registers) == {8, 9}
    else:
        with pytest.raises(FailedPrecondition, match="replace it as well"):
            predict(given, base=base_of(named), command_line="quiet")


def test_a_command_line_that_nobody_measures_is_refused():
    """Without GRUB's strings and without load options there is no place for it."""
    quiet = base_of(changed(GOOD, lambda e: None if e.pcr == 8 else e))
    with pytest.raises(FailedPrecondition, match="no command line that is known"):
        predict(base=quiet, command_line="quiet")
    nameless = base_of(changed(GOOD, lambda e: None if e.data.startswith(b"(hd0") else e))
    with pytest.raises(FailedPrecondition, match="none is known"):
        predict(base=nameless, command_line="quiet")


def test_a_text_that_was_cut_is_not_guessed():
    """The text shown must hash to what was measured, or its change can't be computed."""
    line = BASE[Component.COMMAND_LINE]
    runs = tuple(
        replace(
            run,
            events=tuple(replace(event, meaning=event.meaning + "…") for event in run.events),
        )
        for run in line.pcrs[8]
    )
    cut = {**BASE, Component.COMMAND_LINE: replace(line, pcrs={**line.pcrs, 8: runs})}
    with pytest.raises(FailedPrecondition, match="not known in full"):
        predict(file(CFG), base=cut, command_line="quiet")


def test_other_sections_than_before_are_refused():
    """The order in which a stub would measure a new section is not known."""
    log, base = uki()
    known = sections(log)
    less = [{n: digest for n, digest in known.items() if n != name} for name in known]
    for changed_sections in ({**known, ".splash": "dd" * 32}, *less):
        new = file("kernel", image_digest="ee" * 32, sections=changed_sections)
        with pytest.raises(FailedPrecondition, match="not those of the base"):
            predict(new, base=base)
    with pytest.raises(FailedPrecondition, match="section of the unified"):
        predict(file("initrd"), base=base)
    with pytest.raises(FailedPrecondition, match="section of the unified"):
        predict(base=base, command_line="quiet")


def test_what_else_a_stub_passes_on_is_refused():
    """With credentials the initrd that the kernel sees is not the section."""
    log, _ = uki()
    new = file("kernel", image_digest="ee" * 32, sections=sections(log))
    for pcr in (12, 13):
        extra = log.events[-1]._replace(
            pcr=pcr, type=13, data="credential".encode("utf-16-le"), number=99
        )
        wide = variants(replace(log, events=(*log.events, extra)), pcrs=(*PCRS, 13))
        with pytest.raises(FailedPrecondition, match="credentials or extensions"):
            predict(new, base={each.component: each for each in wide})


def test_an_image_without_initrd_and_command_line():
    """What the sections do not hold is not exchanged in PCR 9 either."""
    log, _ = uki()
    bare = changed(log, lambda e: None if e.pcr == 11 and b"l\0i\0n\0u\0x" not in e.data else e)
    new = file("kernel", image_digest="ee" * 32, sections={".linux": "ff" * 32})
    assert set(predict(new, base=base_of(bare)).registers) == {4, 11}
    for name in (".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb"):
        more = replace(new, sections={**new.sections, name: "ab" * 32})
        with pytest.raises(FailedPrecondition, match=rf"new: \{name}"):
            predict(more, base=base_of(bare))
    known = replace(new, sections={**new.sections, ".reloc": "ab" * 32})
    assert set(predict(known, base=base_of(bare)).registers) == {4, 11}


def test_sections_that_no_stub_measured_are_refused():
    """PCR 11 of something else: names whose digest is not that of the name."""
    log, _ = uki()
    renamed = changed(
        log,
        lambda e: e._replace(data=".other".encode("utf-16-le")) if e.pcr == 11 else e,
    )
    new = file("kernel", image_digest="ee" * 32, sections={".other": "00" * 32})
    with pytest.raises(FailedPrecondition, match="not what systemd-stub measures"):
        predict(new, base=base_of(renamed))


def test_sections_that_do_not_come_in_pairs_are_refused():
    """A stub measures each section's name, then its content, under one name."""
    log, _ = uki()
    numbers = [event.number for event in log.in_register(11)]
    new = file("kernel", image_digest="ee" * 32, sections=sections(log))
    for position in (1, len(numbers) - 1):
        odd = changed(
            log,
            lambda e, at=numbers[position]: (
                e._replace(data=".other".encode("utf-16-le")) if e.number == at else e
            ),
        )
        less = changed(log, lambda e, at=numbers[position]: None if e.number == at else e)
        for base in (odd, less):
            with pytest.raises(FailedPrecondition, match="not what systemd-stub measures"):
                predict(new, base=base_of(base))


@pytest.mark.parametrize(
    ("kind", "meaning", "role"),
    [
        ("EV_IPL", "GRUB command: /x", "GRUB command: /x"),
        ("EV_EVENT_TAG", "boot loader: /x", "/x"),
        ("EV_IPL", "boot loader: /y", "/x"),
    ],
)
def test_only_files_of_the_boot_loader_have_a_path(kind, meaning, role):
    """Words of another event are no path, whatever they look like (rule 37)."""
    kernel = BASE[Component.KERNEL]
    runs = tuple(
        replace(run, events=tuple(replace(e, type=kind, meaning=meaning) for e in run.events))
        for run in kernel.pcrs[9]
    )
    base = {**BASE, Component.KERNEL: replace(kernel, pcrs={**kernel.pcrs, 9: runs})}
    with pytest.raises(FailedPrecondition, match="nor a file in PCR 9"):
        predict(file(role), base=base)


def test_runs_that_do_not_fit_together_have_no_value():
    """Without a component, or with one of another chain, a register has no predicted value."""
    assert compose_register(without(Component.COMMAND_LINE), 8) is None
    log = good_boot("other-kernel-build")
    found = predict(
        *kernel_update(log),
        base={Component.KERNEL: BASE[Component.KERNEL]}
        | {Component.COMMAND_LINE: BASE[Component.COMMAND_LINE]},
    )
    assert found.registers == {}
