"""Events in words, and what their digests prove (rules 37, 38, 43)."""

import struct

import pytest
from support.logbuilder import GLOBAL, digest, guid, signature_list, variable

from trustauthority.model.bootlog import BootEvent
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.quirk import Quirk
from trustauthority.verification.meaning import Proof, describe

BANK = HashAlgorithm.SHA256


def meaning(kind: int, data: bytes, hashed: bytes | None = None, **options):
    """Describe one event whose digest is that of ``hashed``."""
    value = digest("sha256", data if hashed is None else hashed)
    return describe(BootEvent(0, 0, 0, kind, (value,), data), value, BANK, **options)


WORDS = [
    (0x3, b"Spec ID Event03\0", "header of the log"),
    (0x3, b"StartupLocality\0\x03", "TPM2_Startup from locality 3"),
    (0x3, b"SP800-155 Event3...", "where the manufacturer publishes"),
    (0x3, b"anything", "information only: anything"),
    (0x4, bytes(4), "separator"),
    (0x4, b"\x01\0\0\0", "separator after an error"),
    (0x4, b"\x02\0\0\0", "separator with unexpected data"),
    (0x8, "1.0".encode("utf-16-le") + b"\0\0", "version of the root of trust: 1.0"),
    (0x8, b"", "version of the root of trust"),
    (0x1, b"ACPI DATA", "firmware code: ACPI DATA"),
    (0x6, struct.pack("<II", 1, 12) + b"Linux initrd", "tagged event: Linux initrd"),
    (0x6, b"LOADED_IMAGE::LoadOptions\0", "tagged event: LOADED_IMAGE::LoadOptions"),
    (0x6, b"\x01", "tagged event"),
    (0xD, b"grub_cmd: set x=1\0", "GRUB command: set x=1"),
    (0xD, b"kernel_cmdline: ro\0", "kernel command line: ro"),
    (0xD, b"/boot/grub.cfg\0", "boot loader: /boot/grub.cfg"),
    (0xD, ".linux\0".encode("utf-16-le"), "boot loader: .linux"),
    (0x80000001, variable("SecureBoot", b"\x01"), "EFI variable SecureBoot = 01"),
    (0x80000001, variable("SecureBoot", b""), "EFI variable SecureBoot = (empty)"),
    (0x80000001, variable("db", signature_list([bytes(32)])), "EFI variable db = 1 entries, 76"),
    (0x80000001, variable("db", b"x" * 30), "no signature lists"),
    (0x800000E0, variable("SbatLevel", b"sbat,1\nshim,2\n"), "sbat,1 shim,2"),
    (0x800000E0, variable("MokList", bytes(17)), "EFI variable MokList = 17 bytes"),
    (0x80000002, variable("Boot0001", bytes(6) + "disk\0".encode("utf-16-le")), "“disk”"),
    (0x80000002, variable("Boot0001", b"\x01"), "EFI variable Boot0001 = 01"),
    (0x80000003, struct.pack("<QQQQ", 1, 2, 3, 0), "image from memory (2 bytes loaded)"),
    (0x80000006, b"EFI PART" + bytes(84) + bytes(8), "malformed"),
    (0x80000007, b"Calling EFI Application", "firmware action: Calling EFI Application"),
    (0x80000008, bytes(16), "firmware volume (16 bytes of place)"),
    (0x80000009, struct.pack("<Q", 1) + guid(GLOBAL) + bytes(8), f"firmware table {GLOBAL}"),
    (0x80000009, b"", "firmware tables"),
    (0x8000000A, b"\x03Fv1" + bytes(16), "firmware volume Fv1"),
    (0x8000000B, b"\x04ACPI" + bytes(16), "firmware tables ACPI"),
    (0x8401, b"\x01", "1 bytes of an event type we do not know"),
]


@pytest.mark.parametrize(("kind", "data", "text"), WORDS, ids=[words[2][:30] for words in WORDS])
def test_event_in_words(kind, data, text):
    """Each event says what it is; what can't be read says so (issue 3: the event, in words)."""
    assert text in meaning(kind, data).text


def test_partition_table_in_words():
    """The disk is named by its GUID."""
    header = bytearray(92)
    header[:8] = b"EFI PART"
    header[84:88] = struct.pack("<I", 128)
    assert "0 partitions" in meaning(0x80000006, bytes(header) + bytes(8)).text


@pytest.mark.parametrize(
    ("kind", "data", "hashed", "proof"),
    [
        (0x8, b"version", b"version", Proof.DATA),
        (0x8, b"version", b"other", Proof.NONE),
        (0x3, b"anything", b"anything", Proof.NONE),
        (0xD, b"grub_cmd: set x=1\0", b"set x=1", Proof.VALUE),
        (0xD, b"grub_cmd: set x=2\0", b"set x=1", Proof.NONE),
        (0xD, b"grub_kernel_cmdline ro\0", b"ro", Proof.VALUE),
        (0xD, b"/boot/grub.cfg\0", b"the file", Proof.NONE),
        (0xD, ".linux\0".encode("utf-16-le"), b".linux\0", Proof.VALUE),
        (0xD, "linux\0".encode("utf-16-le"), b"linux\0", Proof.NONE),
        (0x80000002, variable("BootOrder", b"\x01\0"), b"\x01\0", Proof.VALUE),
        (0x80000002, b"short", b"", Proof.NONE),
        (0x80000001, variable("SecureBoot", b"\x01"), b"\x01", Proof.NONE),
        (0x80000003, bytes(32), b"image", Proof.NONE),
    ],
)
def test_data_counts_only_where_its_digest_proves_it(kind, data, hashed, proof):
    """Rule 38, by type: whole data, the value inside, or nothing."""
    found = meaning(kind, data, hashed)
    assert found.proof is proof
    assert found.proven is (proof is not Proof.NONE)


def test_half_a_surrogate_is_no_crash():
    """Text that no encoder writes is shown as such and proves nothing (rules 38, 45)."""
    data = ".section".encode("utf-16-le") + b"\x00\xd8" + b"\0\0"
    found = meaning(0xD, data, b"other")
    assert found.proof is Proof.NONE
    assert found.text.startswith("boot loader: .section")


def test_shim_quirk_is_opt_in_and_only_for_authorities():
    """One byte too many in an authority of old shim proves nothing unless policy names it (rule 43)."""
    data = variable("Shim", b"certificate") + b"x"
    quirk = frozenset({Quirk.SHIM_TRAILING_BYTES})
    assert meaning(0x800000E0, data, data[:-1]).proof is Proof.NONE
    assert meaning(0x800000E0, data, data[:-1], quirks=quirk).proof is Proof.DATA
    assert meaning(0x800000E0, data, data[:-2], quirks=quirk).proof is Proof.NONE
    assert meaning(0x80000001, data, data[:-1], quirks=quirk).proof is Proof.NONE


def test_long_words_are_cut():
    """A megabyte of text in one event does not reach a report (N44)."""
    assert len(meaning(0xD, b"grub_cmd: " + b"a" * (1 << 20)).text) == 4096
