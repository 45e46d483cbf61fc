"""Escrowed keys: open for the offline private key alone, and as the key of one VM alone."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.escrow import ORIGIN, OTHER_PRIVATE, PRIVATE, VM_KEY, binding, public, sealed

from hostagent import libvirt_vms
from trustauthority.adapters.kms.escrow import load_escrow_key
from trustauthority.errors import ConfigurationInvalid, EscrowRejected, MalformedEscrow, NotFound
from trustauthority.keyrelease import escrow
from trustauthority.keyrelease.escrow_export import (
    Drill,
    ExportedKey,
    decode_drill,
    decode_export,
    encode_drill,
    encode_export,
)
from trustauthority.model.identifiers import VmId

BLOB = sealed()


class TestOpening:
    def test_the_private_key_opens_it(self) -> None:
        """Survival: with the offline key alone a VM key comes back, of any length."""
        for key in (b"k", VM_KEY, bytes(4096)):
            blob = sealed(key)
            assert key not in blob or key == b"k"
            assert escrow.open_escrowed(blob, PRIVATE, expected=binding()) == key

    def test_another_private_key_is_refused_by_name(self) -> None:
        """A wrong key is told apart from a damaged blob: which key is needed is said."""
        with pytest.raises(EscrowRejected, match=public().key_id.hex()[:16]) as refused:
            escrow.open_escrowed(BLOB, OTHER_PRIVATE, expected=binding())
        assert public(OTHER_PRIVATE).key_id.hex()[:16] in refused.value.message

    @pytest.mark.parametrize(
        "other", [binding("billing"), binding(key_epoch=2), binding(origin="elsewhere")]
    )
    def test_a_genuine_blob_of_something_else_is_refused(self, other) -> None:
        """N57: the key of another VM, epoch or authority is never taken for this one."""
        with pytest.raises(EscrowRejected, match="the blob holds"):
            escrow.open_escrowed(BLOB, PRIVATE, expected=other)

    @pytest.mark.parametrize(
        "claimed", [binding("billing"), binding(key_epoch=2), binding(origin="elsewhere")]
    )
    def test_a_relabelled_blob_does_not_open(self, claimed) -> None:
        """N57: the header is part of the encryption, so a blob can't be given to another VM."""
        body = BLOB[len(escrow.escrow_header(binding(), public().key_id)) :]
        relabelled = escrow.escrow_header(claimed, public().key_id) + body
        with pytest.raises(EscrowRejected, match="was changed"):
            escrow.open_escrowed(relabelled, PRIVATE, expected=claimed)

    def test_no_changed_byte_opens(self) -> None:
        """N57: flip any bit of a blob, and it is malformed or refused."""
        for at in range(len(BLOB)):
            changed = BLOB[:at] + bytes([BLOB[at] ^ (1 << at % 8)]) + BLOB[at + 1 :]
            with pytest.raises((EscrowRejected, MalformedEscrow)):
                escrow.open_escrowed(changed, PRIVATE, expected=binding())

    def test_no_cut_or_longer_blob_opens(self) -> None:
        """N57: bytes missing at any place or added at the end are noticed."""
        for size in range(0, len(BLOB), 7):
            with pytest.raises((EscrowRejected, MalformedEscrow)):
                escrow.open_escrowed(BLOB[:size], PRIVATE, expected=binding())
        with pytest.raises(EscrowRejected):
            escrow.open_escrowed(BLOB + b"\0", PRIVATE, expected=binding())
        with pytest.raises(MalformedEscrow):
            escrow.open_escrowed(BLOB + bytes(escrow.MAX_ESCROWED), PRIVATE, expected=binding())

    @given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda b: BLOB[:50] + b))
    @settings(max_examples=200, deadline=None)
    def test_any_bytes_are_an_error_of_ours(self, blob) -> None:
        """Whatever is in a file, the answer is a refusal, not a crash."""
        with pytest.raises((EscrowRejected, MalformedEscrow)):
            escrow.open_escrowed(blob, PRIVATE, expected=binding())

    def test_two_seals_of_one_key_share_nothing(self) -> None:
        """A reader of the database can't see that two VMs have the same imported passphrase."""
        first, second = (escrow.decode_escrowed(sealed()).ciphertext for _ in range(2))
        assert first[:32] != second[:32]
        assert first[-40:] != second[-40:]

    def test_the_header_says_the_algorithms(self) -> None:
        """Algorithm ids are in every blob; another one is refused, nothing is negotiated."""
        assert BLOB[:12] == b"TAES" + bytes.fromhex("0001 647a 0001 0002")
        for at in range(5, 12, 2):
            other = BLOB[:at] + bytes([BLOB[at] ^ 1]) + BLOB[at + 1 :]
            with pytest.raises(MalformedEscrow, match="version and algorithms"):
                escrow.decode_escrowed(other)


class TestPublicKey:
    def test_text_form(self) -> None:
        """What init takes is what keygen wrote; cut, foreign or changed files are refused."""
        text = escrow.encode_escrow_key(public())
        assert escrow.decode_escrow_key(text) == public()
        for wrong in (
            "",
            text[:-40],
            text.replace("PUBLIC", "PRIVATE"),
            text.replace(text.splitlines()[3], ""),
            text.replace(text.splitlines()[3], "*" * 64),
        ):
            with pytest.raises(MalformedEscrow):
                escrow.decode_escrow_key(wrong)

    def test_a_swapped_key_file_is_noticed(self, tmp_path) -> None:
        """Whoever replaces the public key in the state folder does not get the keys made since."""
        path = tmp_path / "escrow.pub"
        path.write_text(escrow.encode_escrow_key(public()))
        assert load_escrow_key(path, public().key_id.hex()) == public()
        path.write_text(escrow.encode_escrow_key(public(OTHER_PRIVATE)))
        with pytest.raises(ConfigurationInvalid, match="no VM key is made"):
            load_escrow_key(path, public().key_id.hex())
        path.write_text("rubbish")
        with pytest.raises(ConfigurationInvalid, match="can't use"):
            load_escrow_key(path, public().key_id.hex())
        path.unlink()
        with pytest.raises(ConfigurationInvalid, match="FileNotFoundError"):
            load_escrow_key(path, public().key_id.hex())


class TestUse:
    def test_passphrases_are_those_of_the_agent(self) -> None:
        """The recovered passphrase is the one with which the host made the disk and the vTPM."""
        assert escrow.disk_passphrase(VM_KEY, "payroll") == libvirt_vms.disk_passphrase(
            VM_KEY, "payroll"
        )
        assert escrow.vtpm_passphrase(VM_KEY, "payroll") == libvirt_vms.vtpm_passphrase(
            VM_KEY, "payroll"
        )

    def test_the_answer_of_a_drill_depends_on_all_of_it(self) -> None:
        """A drill passes for the right key, VM, epoch and challenge only, and shows no key."""
        challenge = bytes(32)
        right = escrow.drill_answer(VM_KEY, binding(), challenge)
        assert len(right) == 16
        assert right == escrow.drill_answer(bytearray(VM_KEY), binding(), challenge)
        others = {
            escrow.drill_answer(b"another", binding(), challenge),
            escrow.drill_answer(VM_KEY, binding("billing"), challenge),
            escrow.drill_answer(VM_KEY, binding(key_epoch=2), challenge),
            escrow.drill_answer(VM_KEY, binding(), hashlib.sha256().digest()),
        }
        assert len(others | {right}) == 5
        with pytest.raises(MalformedEscrow):
            escrow.drill_answer(VM_KEY, binding(), b"short")


class TestFiles:
    KEYS = tuple(
        ExportedKey(
            vm_id=VmId(vm), key_epoch=epoch, state="active", blob=sealed(bound=binding(vm, epoch))
        )
        for vm, epoch in (("payroll", 1), ("payroll", 3), ("billing", 1))
    )

    def test_export(self) -> None:
        """The newest key of a VM is found, or the one that was asked for, or none."""
        export = decode_export(encode_export(ORIGIN, self.KEYS))
        assert export.keys == self.KEYS
        assert export.find("payroll").key_epoch == 3
        assert export.find("payroll", 1) == self.KEYS[0]
        assert export.binding(export.find("payroll")) == binding(key_epoch=3)
        for vm, epoch in (("other", 0), ("payroll", 2)):
            with pytest.raises(NotFound):
                export.find(vm, epoch)

    def test_drill(self) -> None:
        """A drill's file is what it was."""
        drill = Drill(binding=binding(), challenge=bytes(32), blob=BLOB)
        assert decode_drill(encode_drill(drill)) == drill

    @pytest.mark.parametrize("decode", [decode_export, decode_drill])
    def test_damaged_files(self, decode) -> None:
        """A damaged file is named as such."""
        whole = {
            decode_export: encode_export(ORIGIN, self.KEYS),
            decode_drill: encode_drill(Drill(binding=binding(), challenge=bytes(32), blob=BLOB)),
        }[decode]
        for wrong in (
            b"",
            b"[]",
            b"{}",
            b"[" * 100_000,
            whole[:-9],
            whole.replace(b'"keyEpoch": 1', b'"keyEpoch": true'),
            whole.replace(b'"keyEpoch"', b'"other"'),
            whole.replace(b'"blob": "VE', b'"blob": "*VE'),
        ):
            assert wrong != whole
            with pytest.raises(MalformedEscrow):
                decode(wrong)
        with pytest.raises(MalformedEscrow):
            decode_export(encode_export(ORIGIN, [replace(self.KEYS[0], blob=b"no blob")]))
