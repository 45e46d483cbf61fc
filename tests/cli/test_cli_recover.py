"""``ta key escrow keygen`` and ``ta key recover``: offline, from files, and nothing secret printed."""

import subprocess

import pytest
from support.escrow import ORIGIN, OTHER_PRIVATE, VM_KEY, binding
from support.escrow import sealed as seal

from hostagent.luks import run_qemu
from trustauthority.adapters.kms.escrow import seal_to_escrow
from trustauthority.cli.escrow_files import (
    decrypt_private_key,
    encrypt_private_key,
    new_private_key,
)
from trustauthority.cli.exit import ExitCode
from trustauthority.errors import EscrowRejected, MalformedEscrow
from trustauthority.keyrelease.escrow import PRIVATE_SIZE, decode_escrow_key, disk_passphrase
from trustauthority.keyrelease.escrow_export import ExportedKey, encode_export
from trustauthority.model.identifiers import VmId

PASSPHRASE = "correct horse battery"


@pytest.fixture
def desk(tmp_path, make_ta):
    """Files of an air-gapped machine, and a way to recover with them."""
    ta = make_ta("127.0.0.1:1")
    ta.contexts.unlink()  # it knows no authority

    class Desk:
        folder = tmp_path
        private, public = tmp_path / "escrow.key", tmp_path / "escrow.pub"
        passphrase, export = tmp_path / "pass", tmp_path / "escrow.json"

        def keygen(self):
            self.passphrase.write_text(PASSPHRASE + "\n")
            self.passphrase.chmod(0o600)
            names = ("private", "public", "passphrase-file")
            paths = (self.private, self.public, self.passphrase)
            words = [w for n, p in zip(names, paths, strict=True) for w in (f"--{n}", str(p))]
            return ta("key", "escrow", "keygen", *words)

        def escrow(self, *vms: str, to=None, **changes):
            key = to or decode_escrow_key(self.public.read_text())
            keys = [
                ExportedKey(
                    vm_id=VmId(vm),
                    key_epoch=1,
                    state="active",
                    blob=seal_to_escrow(VM_KEY, binding(changes.get("sealed_as", vm)), key),
                )
                for vm in vms
            ]
            self.export.write_bytes(encode_export(ORIGIN, keys))

        def recover(self, vm="payroll", *more, out=None):
            out = out or self.folder / "out"
            words = ["--escrow", str(self.export), "--private", str(self.private)]
            words += ["--passphrase-file", str(self.passphrase), "--out", str(out), *more]
            return ta("key", "recover", vm, *words)

    made = Desk()
    assert made.keygen().code is ExitCode.YES
    return made


class TestKeygen:
    def test_files_and_modes(self, desk):
        """The private key is for its owner only, encrypted, and never printed; nothing is replaced."""
        assert desk.private.stat().st_mode & 0o777 == 0o600
        private = decrypt_private_key(desk.private.read_text(), PASSPHRASE.encode())
        assert len(private) == PRIVATE_SIZE
        assert private not in desk.private.read_bytes()
        before = desk.private.read_bytes()
        again = desk.keygen()
        assert again.code is ExitCode.USAGE
        assert "exists" in again.err
        assert desk.private.read_bytes() == before

    @pytest.mark.parametrize("content", ["", "short\n"])
    def test_a_short_passphrase_is_refused(self, desk, make_ta, content):
        """An offline key behind a word that is guessed in an hour is no escrow."""
        desk.passphrase.write_text(content)
        words = ["--private", str(desk.folder / "a"), "--public", str(desk.folder / "b")]
        answer = make_ta("127.0.0.1:1")(
            "key", "escrow", "keygen", *words, "--passphrase-file", str(desk.passphrase)
        )
        assert answer.code is ExitCode.USAGE
        assert not (desk.folder / "a").exists()

    def test_open_files_are_refused(self, desk):
        """N60: a passphrase or private key that others can read is not used."""
        for path in (desk.passphrase, desk.private):
            desk.escrow("payroll")
            path.chmod(0o644)
            answer = desk.recover()
            assert (answer.code, "chmod 600" in answer.err) == (ExitCode.USAGE, True)
            path.chmod(0o600)

    def test_a_changed_file_or_another_passphrase(self):
        """The private key's file opens whole, with its passphrase, or not at all."""
        text = encrypt_private_key(new_private_key(), PASSPHRASE.encode())
        with pytest.raises(EscrowRejected, match="passphrase is wrong"):
            decrypt_private_key(text, b"another passphrase")
        lines = text.splitlines()
        swapped = "\n".join([lines[0], lines[2], lines[1], *lines[3:]])
        with pytest.raises((EscrowRejected, MalformedEscrow)):
            decrypt_private_key(swapped, PASSPHRASE.encode())
        with pytest.raises(MalformedEscrow):
            decrypt_private_key(text.replace("PRIVATE", "PUBLIC"), PASSPHRASE.encode())


class TestRecover:
    @pytest.mark.parametrize("form", ["key", "disk", "vtpm"])
    def test_key_and_passphrases(self, desk, form):
        """The key comes into a private file and is not printed, in any form."""
        desk.escrow("payroll", "billing")
        answer = desk.recover("payroll", "--form", form, "-o", "json")
        assert answer.code is ExitCode.YES
        written = (desk.folder / "out").read_bytes()
        assert (written == VM_KEY) is (form == "key")
        assert (desk.folder / "out").stat().st_mode & 0o777 == 0o600
        assert written.decode() not in answer.out + answer.err
        assert VM_KEY.decode() not in answer.out + answer.err

    def test_it_opens_a_real_luks_disk(self, desk):
        """Survival, end to end: a disk that qemu-img encrypted opens with the recovered passphrase."""
        image = desk.folder / "disk.luks"
        words = ("-f", "luks", "-o", "key-secret=s,iter-time=50", str(image), "4M")
        run_qemu("qemu-img", "create", "-q", *words, s=disk_passphrase(VM_KEY, "payroll"))
        desk.escrow("payroll", "billing")
        assert desk.recover("payroll", "--form", "disk").code is ExitCode.YES
        assert _opens(image, desk.folder / "out")
        other = desk.folder / "other"
        assert desk.recover("billing", "--form", "disk", out=other).code is ExitCode.YES
        assert not _opens(image, other)

    def test_refusals(self, desk):
        """Unknown VM, another VM's blob, another escrow key, a damaged file: each refused by name."""
        desk.escrow("payroll")
        answer = desk.recover("unknown")
        assert (answer.code, "not in this file" in answer.err) == (ExitCode.NOT_FOUND, True)
        desk.escrow("payroll", sealed_as="billing")
        answer = desk.recover()
        assert (answer.code, "billing" in answer.err) == (ExitCode.NO, True)
        desk.export.write_bytes(
            encode_export(
                ORIGIN,
                [
                    ExportedKey(
                        vm_id=VmId("payroll"),
                        key_epoch=1,
                        state="active",
                        blob=seal(to=OTHER_PRIVATE),
                    )
                ],
            )
        )
        answer = desk.recover()
        assert (answer.code, "this private key is" in answer.err) == (ExitCode.NO, True)
        desk.export.write_bytes(desk.export.read_bytes()[:-30])
        assert desk.recover().code is ExitCode.USAGE
        assert not (desk.folder / "out").exists()

    def test_a_tampered_blob_writes_nothing(self, desk):
        """N57: a changed blob is refused and leaves no file."""
        key = decode_escrow_key(desk.public.read_text())
        blob = bytearray(seal_to_escrow(VM_KEY, binding(), key))
        blob[-1] ^= 1
        entry = ExportedKey(vm_id=VmId("payroll"), key_epoch=1, state="active", blob=bytes(blob))
        desk.export.write_bytes(encode_export(ORIGIN, [entry]))
        answer = desk.recover()
        assert (answer.code, "was changed" in answer.err) == (ExitCode.NO, True)
        assert not (desk.folder / "out").exists()

    def test_an_existing_file_stays(self, desk):
        """Nothing that exists is replaced."""
        desk.escrow("payroll")
        (desk.folder / "out").write_text("mine")
        assert desk.recover().code is ExitCode.USAGE
        assert (desk.folder / "out").read_text() == "mine"


def _opens(image, key_file) -> bool:
    """Whether cryptsetup says that the passphrase in the file is one of the disk."""
    words = ["cryptsetup", "open", "--test-passphrase", "--type", "luks1", "--key-file"]
    done = subprocess.run(
        [*words, str(key_file), str(image)], capture_output=True, timeout=60, check=False
    )
    return done.returncode == 0
