"""Captured boots replayed into software TPMs: the fixtures of everything that judges a host."""

import shutil
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from support.bootlogs import EV_NO_ACTION, read_event_log, read_ima_log
from support.boots import (
    BOOTS,
    BootNotReplayable,
    captured_pcrs,
    differing_pcrs,
    extend,
    read_pcrs,
    replay_boot,
)
from support.swtpm import SoftwareTpm, TpmMaker

pytestmark = [pytest.mark.swtpm, pytest.mark.xdist_group("swtpm-boots")]

ALL = ("good", "good-second-boot", "changed-cmdline", "other-kernel-build", "secureboot-off")
SECURE_BOOT = "SecureBoot".encode("utf-16-le")
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001


@pytest.fixture(scope="module")
def powered(tmp_path_factory):
    """One TPM for the module; tests reset it before use."""
    directory = tmp_path_factory.mktemp("boots")
    made = SoftwareTpm.manufacture(directory / "tpm", maker=TpmMaker(directory / "maker"))
    with made as tpm:
        yield tpm


@pytest.fixture
def tpm(powered):
    """The TPM after a power cut: PCRs at their reset values."""
    powered.reset()
    return powered


def booted(tpm: SoftwareTpm, name: str) -> dict[str, dict[int, bytes]]:
    """The PCRs after this capture was replayed into the TPM, which is reset first."""
    tpm.reset()
    replay_boot(tpm.tcti, BOOTS / name)
    return read_pcrs(tpm.tcti, ("sha1", "sha256"))


def secure_boot(name: str) -> bytes:
    """The SecureBoot variable as the firmware measured it into PCR 7."""
    events = read_event_log((BOOTS / name / "eventlog.bin").read_bytes())
    (event,) = [
        event
        for event in events
        if event.kind == EV_EFI_VARIABLE_DRIVER_CONFIG and SECURE_BOOT in event.data[:64]
    ]
    assert event.pcr == 7
    return event.data.partition(SECURE_BOOT)[2]


@pytest.mark.parametrize("name", ALL)
def test_a_replayed_boot_leaves_exactly_the_captured_pcrs(tpm, name):
    """Both banks, all 24 PCRs: what later tests quote is what a real host had (N14)."""
    boot = replay_boot(tpm.tcti, BOOTS / name)
    assert boot.banks == ("sha1", "sha256")
    assert read_pcrs(tpm.tcti, boot.banks) == captured_pcrs(BOOTS / name)
    assert boot.differing_pcrs(tpm.tcti) == {}


def test_two_boots_of_one_host_differ_in_the_order_of_ima_entries_only(tpm):
    """A baseline from one boot must fit the next: same set, other order, other PCR 10 (rule 54)."""
    differing = differing_pcrs(booted(tpm, "good"), booted(tpm, "good-second-boot"))
    assert differing == {"sha1": [10], "sha256": [10]}
    first, second = (
        read_ima_log((BOOTS / name / "ima.bin").read_bytes())
        for name in ("good", "good-second-boot")
    )
    assert first != second
    assert {entry.data for entry in first} == {entry.data for entry in second}


def test_a_kernel_argument_shows_in_the_grub_and_stub_pcrs(tpm):
    """Every signature of this boot is valid; PCR 8 and 9 are what gives it away (rule 34)."""
    differing = differing_pcrs(booted(tpm, "good"), booted(tpm, "changed-cmdline"))
    assert differing == {"sha1": [8, 9, 10], "sha256": [8, 9, 10]}
    assert b"systemd.debug_shell=1" in (BOOTS / "changed-cmdline" / "eventlog.bin").read_bytes()
    assert b"systemd.debug_shell=1" not in (BOOTS / "good" / "eventlog.bin").read_bytes()


def test_another_kernel_leaves_the_firmware_pcrs_alone(tpm):
    """A kernel update must not look like a firmware change: PCR 0-3, 5-7 and 14 stay."""
    differing = differing_pcrs(booted(tpm, "good"), booted(tpm, "other-kernel-build"))
    assert differing == {"sha1": [4, 9, 10], "sha256": [4, 9, 10]}


def test_secure_boot_off_is_measured_by_the_firmware(tpm):
    """The log tells the Secure Boot state, not the running system (pitfalls rule 42)."""
    assert [secure_boot(name)[-1:] for name in ALL[:4]] == [b"\x01"] * 4
    assert secure_boot("secureboot-off")[-1:] != b"\x01"
    assert 7 in differing_pcrs(booted(tpm, "good"), booted(tpm, "secureboot-off"))["sha256"]


@pytest.mark.parametrize("name", ALL)
def test_the_captured_quotes_are_genuine(name):
    """A vector whose quote the AK did not sign would make every later test worthless."""
    capture = BOOTS / name
    key = load_pem_public_key((capture / "ak.pem").read_bytes())
    assert isinstance(key, rsa.RSAPublicKey)
    nonce = bytes.fromhex((capture / "nonce").read_text())
    for quote in ("quote", "quote-both-banks"):
        message = (capture / f"{quote}.msg").read_bytes()
        signature = (capture / f"{quote}.sig").read_bytes()[6:]  # TPMT_SIGNATURE head
        key.verify(signature, message, padding.PKCS1v15(), SHA256())
        assert nonce in message


def test_captures_have_a_nonce_and_an_ak_each():
    """Captures must not be copies of one another: distinct nonces, distinct keys."""
    assert len({(BOOTS / name / "nonce").read_text() for name in ALL}) == len(ALL)
    assert len({(BOOTS / name / "ak.pub").read_bytes() for name in ALL}) == len(ALL)
    assert len({(BOOTS / name / "ek.pub").read_bytes() for name in ALL}) == 1


def test_a_measured_program_changes_log_and_pcr_10_together(tpm, tmp_path):
    """A program run later is one more IMA entry that still replays (pitfalls rule 54)."""
    boot = replay_boot(tpm.tcti, BOOTS / "good", into=tmp_path / "host")
    entry = boot.append_ima(tpm.tcti, "/usr/local/bin/rootkit", b"\x7fELF")
    assert read_ima_log(boot.ima_log.read_bytes())[-1] == entry
    assert boot.differing_pcrs(tpm.tcti) == {}
    now = read_pcrs(tpm.tcti, boot.banks)
    assert differing_pcrs(captured_pcrs(BOOTS / "good"), now) == {"sha1": [10], "sha256": [10]}


def test_an_ima_violation_is_extended_as_all_ones(tpm, tmp_path):
    """The kernel logs zeros and extends ones; the replaying side must do the same (N22, rule 52)."""
    boot = replay_boot(tpm.tcti, BOOTS / "good", into=tmp_path / "host")
    entry = boot.append_ima(tpm.tcti, "/var/log/journal", violation=True)
    assert entry.template_hash == bytes(20)
    assert entry.digest("sha256") == b"\xff" * 32
    assert boot.differing_pcrs(tpm.tcti) == {}


def test_the_capture_itself_is_never_written(tpm, tmp_path):
    """Appending goes to the copy of one test, not to the vector all tests share."""
    before = (BOOTS / "good" / "ima.bin").read_bytes()
    replay_boot(tpm.tcti, BOOTS / "good", into=tmp_path / "host").append_ima(tpm.tcti, "/x", b"x")
    assert (BOOTS / "good" / "ima.bin").read_bytes() == before


def test_an_extend_without_a_log_entry_is_seen(tpm):
    """PCRs that the log does not explain are named, each bank apart (pitfalls rules 34, 40)."""
    boot = replay_boot(tpm.tcti, BOOTS / "good")
    extend(tpm.tcti, 11, {"sha256": b"\x01" * 32})
    assert boot.differing_pcrs(tpm.tcti) == {"sha256": [11]}


def test_a_log_that_lost_an_event_is_seen(tpm, tmp_path):
    """An IMA entry removed from the log leaves PCR 10 unexplained (N22)."""
    boot = replay_boot(tpm.tcti, BOOTS / "good", into=tmp_path / "host")
    raw = boot.ima_log.read_bytes()
    last = read_ima_log(raw)[-1].encode()
    boot.ima_log.write_bytes(raw.removesuffix(last))
    assert boot.differing_pcrs(tpm.tcti) == {"sha1": [10], "sha256": [10]}


def test_replay_wants_a_freshly_started_tpm(tpm):
    """Two boots in one TPM would be neither; the second is refused before anything is extended."""
    boot = replay_boot(tpm.tcti, BOOTS / "good")
    with pytest.raises(BootNotReplayable, match="reset the TPM first"):
        replay_boot(tpm.tcti, BOOTS / "changed-cmdline")
    assert boot.differing_pcrs(tpm.tcti) == {}


def test_a_log_that_began_in_locality_3_fits_such_a_start_only(tpm, tmp_path):
    """PCR 0 begins with the StartupLocality of the log, and with nothing else (rule 35)."""
    for name in ("eventlog.bin", "ima.bin"):
        shutil.copyfile(BOOTS / "good" / name, tmp_path / name)
    raw = (tmp_path / "eventlog.bin").read_bytes()
    header = 32 + struct.unpack_from("<I", raw, 28)[0]
    digests = struct.pack("<IH20sH32s", 2, 0x0004, bytes(20), 0x000B, bytes(32))
    told = b"StartupLocality\0\3"
    event = struct.pack("<II", 0, EV_NO_ACTION) + digests + struct.pack("<I", len(told)) + told
    (tmp_path / "eventlog.bin").write_bytes(raw[:header] + event + raw[header:])
    with pytest.raises(BootNotReplayable, match="PCR 0"):
        replay_boot(tpm.tcti, tmp_path)
    tpm.stop()
    tpm.start(locality=3)
    boot = replay_boot(tpm.tcti, tmp_path)
    assert boot.differing_pcrs(tpm.tcti) == {}
    good = captured_pcrs(BOOTS / "good")
    assert differing_pcrs(good, read_pcrs(tpm.tcti, boot.banks)) == {"sha1": [0], "sha256": [0]}


def test_pcrs_are_empty_after_a_reset(tpm):
    """A power cut forgets the boot: nothing of it may be quoted afterwards (rule 50)."""
    good = booted(tpm, "good")
    tpm.reset()
    assert read_pcrs(tpm.tcti, ("sha256",))["sha256"][0] == bytes(32)
    assert good["sha256"][0] != bytes(32)


@pytest.mark.parametrize("name", ALL)
def test_captures_stay_small_and_say_what_made_them(name):
    """Each is under 1 MB and records the versions of firmware, boot chain and kernel."""
    capture: Path = BOOTS / name
    assert sum(path.stat().st_size for path in capture.iterdir()) < 1_000_000
    sources = (capture / "SOURCES").read_text()
    for package in ("ovmf ", "shim-signed ", "grub-efi-amd64-signed ", "linux-image-6.", "swtpm "):
        assert package in sources
