"""What only PKCS#11 has: one login, one lock, forks, PINs, and a KEK that stays in the token."""

import os
import threading

import pytest
from pkcs11 import Attribute, KeyType, Mechanism
from pkcs11 import exceptions as errors
from support.kms_peers import AAD, VM_KEY, KeyWrapPeer, Pkcs11Peer
from support.kms_suite import each_peer

from trustauthority.adapters.kms.pkcs11 import _kek
from trustauthority.errors import KmsUnavailable
from trustauthority.model.kms import HealthState

pytestmark = each_peer((Pkcs11Peer, KeyWrapPeer))


class TestKek:
    def test_it_never_leaves_the_token(self, peer):
        """Sensitive, never extractable, made in the token; reading it is refused there."""

        def look(session):
            kek = _kek(session, bytes.fromhex(peer.kek))
            assert kek[Attribute.NEVER_EXTRACTABLE]
            assert kek[Attribute.ALWAYS_SENSITIVE]
            assert kek[Attribute.LOCAL]
            with pytest.raises(errors.AttributeSensitive):
                kek[Attribute.VALUE]

        peer.kms()._ask(look)

    def test_it_is_for_one_mechanism_only(self, peer):
        """A KEK that both wraps and decrypts would give out what it wraps."""

        def look(session):
            kek = _kek(session, bytes.fromhex(peer.kek))
            return [kek[a] for a in (Attribute.ENCRYPT, Attribute.DECRYPT)], [
                kek[a] for a in (Attribute.WRAP, Attribute.UNWRAP)
            ]

        ciphers, wraps = peer.kms()._ask(look)
        assert ciphers == [peer.mechanism == "aes-gcm"] * 2
        assert wraps == [peer.mechanism == "aes-key-wrap"] * 2

    @pytest.mark.parametrize(
        ("kind", "bits", "extractable"),
        [(KeyType.AES, 256, True), (KeyType.AES, 128, False), (KeyType.GENERIC_SECRET, 256, False)],
    )
    def test_a_key_that_is_none_is_not_used(self, peer, kind, bits, extractable):
        """Somebody else's key under our id, weaker or extractable: refused, never trusted."""
        kek_id = os.urandom(16)
        template = {Attribute.EXTRACTABLE: extractable, Attribute.SENSITIVE: not extractable}

        def make(session):
            options = {"template": template}
            if kind is KeyType.GENERIC_SECRET:
                options["mechanism"] = Mechanism.GENERIC_SECRET_KEY_GEN
            return session.generate_key(kind, bits, id=kek_id, store=True, **options)

        peer.kms()._ask(make)
        with pytest.raises(KmsUnavailable, match="stays in it"):
            peer.kms().wrap(kek_id.hex(), bytearray(VM_KEY), AAD)

    def test_two_keys_with_one_id_are_not_guessed_between(self, peer):
        """An id that is not unique names nothing."""
        kek_id = bytes.fromhex(peer.kms().create_kek("twin"))
        peer.kms()._ask(lambda s: s.generate_key(KeyType.AES, 256, id=kek_id, store=True))
        with pytest.raises(KmsUnavailable, match="two KEKs"):
            peer.kms().wrap(kek_id.hex(), bytearray(VM_KEY), AAD)

    def test_nothing_is_left_in_the_token(self, peer):
        """One-time keys are no objects of the token after their use."""
        count = lambda: peer.kms()._ask(lambda s: len(list(s.get_objects())))  # noqa: E731
        peer.kms().unwrap(peer.kek, peer.wrapped, AAD)
        before = count()
        for _ in range(3):
            blob = peer.kms().wrap(peer.kek, bytearray(VM_KEY), AAD)
            peer.kms().unwrap(peer.kek, blob, AAD)
        assert count() == before


class TestOneLogin:
    def test_many_threads_and_adapters_share_it(self, peer):
        """The library is not made for threads: one lock, or it crashes; a second login would fail."""
        wrapped, kek, failures = peer.wrapped, peer.kek, []

        def work():
            kms = peer.kms()
            try:
                for _ in range(30):
                    assert kms.unwrap(kek, wrapped, AAD) == VM_KEY
            except Exception as failure:  # noqa: BLE001  of whatever kind, it is what we look for
                failures.append(failure)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_a_fork_opens_the_library_anew(self, peer):
        """A child of a fork inherits a library that does not know it; it logs in for itself."""
        kms, kek, wrapped = peer.kms(), peer.kek, peer.wrapped
        assert kms.unwrap(kek, wrapped, AAD) == VM_KEY
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if kms.unwrap(kek, wrapped, AAD) == VM_KEY else 1)
            except BaseException:  # noqa: BLE001  nothing of pytest may run in this child
                os._exit(2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert kms.unwrap(kek, wrapped, AAD) == VM_KEY

    def test_another_pin_does_not_use_the_login_that_is_there(self, peer):
        """A provider with a wrong PIN is refused, even while another one is logged in."""
        assert peer.kms().unwrap(peer.kek, peer.wrapped, AAD) == VM_KEY
        with pytest.raises(KmsUnavailable, match="does not take our PIN"):
            peer.open(peer.unknown()).unwrap(peer.kek, peer.wrapped, AAD)
        assert peer.kms().unwrap(peer.kek, peer.wrapped, AAD) == VM_KEY


class TestToken:
    def test_the_last_try_is_left_to_people(self, peer):
        """A wrong file must not lock the HSM: with one try left, the PIN is not tried."""
        with peer.fault("final-try"):
            health = peer.kms().health()
            assert (health.state, health.trusted_by_server) == (HealthState.ERROR, False)
            assert "last try" in health.detail
            peer.kms().close()
            with pytest.raises(KmsUnavailable, match="last try"):
                peer.kms().unwrap(peer.kek, peer.wrapped, AAD)

    def test_the_serial_number_is_the_tokens(self, peer):
        """A label can be given to any token; the serial number pins the one."""
        serial = peer.kms()._ask(lambda s: s.token.serial).decode()
        health = peer.kms(serial=serial).health()
        assert (health.state, health.trusts_server) == (HealthState.OK, True)
        with pytest.raises(KmsUnavailable, match="another serial number"):
            peer.kms(serial="0000").create_kek("none")

    def test_a_token_that_is_not_there_is_an_outage(self, peer):
        """Pulled out, or misspelt: told as such."""
        with pytest.raises(KmsUnavailable, match="is not there"):
            peer.kms(token="nobody").create_kek("none")

    def test_a_module_that_cannot_be_loaded_is_told(self, peer, tmp_path):
        """A configuration fault is an answer, not a traceback."""
        (tmp_path / "no.so").write_bytes(b"no library")
        for path in (tmp_path / "no.so", tmp_path / "absent.so"):
            with pytest.raises(KmsUnavailable, match=r"can't be (asked|reached)|failed"):
                peer.kms(module=path).create_kek("none")

    @pytest.mark.parametrize("content", [b"", b"\n", b"12\n34\n", b"\xff\xfe", b"x" * 5000])
    def test_a_pin_file_that_is_none_is_not_tried(self, peer, tmp_path, content):
        """A PIN is one line of text; anything else would cost a try."""
        path = tmp_path / "pin"
        path.touch(mode=0o600)
        path.write_bytes(content)
        with pytest.raises(KmsUnavailable, match="not what it should be"):
            peer.kms(pin=path).create_kek("none")
