"""Contract of a KEK in a KMS, against a real KMIP server over mTLS on the loopback."""

import shutil
import signal
import socket
import ssl
import threading
from contextlib import contextmanager

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from kmip.core import enums
from support.kms_process import running_kms

from kms_mock import pki
from trustauthority.adapters.kms.kmip import KmipKms
from trustauthority.adapters.kms.settings import KmipSettings
from trustauthority.errors import KmsUnavailable

VM_KEY = b"a passphrase of a virtual machine"
AAD = b"vm-1, epoch 1"


@pytest.fixture(scope="module")
def kms(tmp_path_factory):
    with running_kms(tmp_path_factory.mktemp("kms") / "kms") as running:
        yield running


def client(kms, **changes):
    return KmipKms(kms.settings(**changes))


def refused(kms, words, uid="1", **changes):
    with pytest.raises(KmsUnavailable, match=words) as caught:
        client(kms, **changes).get_kek(uid)
    return caught.value


@contextmanager
def raw_kmip(kms):
    """PyKMIP's own client, for what the product never does."""
    with client(kms)._session() as session:
        yield session


def make_key(kms, *, bits=256, algorithm=enums.CryptographicAlgorithm.AES, activate=True):
    masks = [enums.CryptographicUsageMask.ENCRYPT]
    with raw_kmip(kms) as session:
        uid = session.create(algorithm, bits, name="odd", cryptographic_usage_mask=masks)
        if activate:
            session.activate(uid)
    return uid


class TestKeks:
    @pytest.mark.parametrize("version", ["1.2", "1.3", "1.4"])
    def test_a_kek_is_made_active_and_stays_the_same(self, kms, version):
        """Create, Activate, Get: every fetch gives the same AES-256 key (design 8)."""
        uid = client(kms, version=version).create_kek("kek")
        first = client(kms, version=version).get_kek(uid)
        assert len(first) == 32
        assert isinstance(first, bytearray)
        assert first == client(kms).get_kek(uid)

    def test_a_name_taken_twice_gives_two_keks(self, kms):
        """Names are not unique in a KMS: only the id counts."""
        one, two = client(kms).create_kek("same"), client(kms).create_kek("same")
        assert one != two
        assert client(kms).get_kek(one) != client(kms).get_kek(two)

    def test_an_unknown_id_is_refused(self, kms):
        """A KEK that is gone is a refusal, not an empty key (N56)."""
        refused(kms, "item not found", "987654")

    @pytest.mark.parametrize("uid", ["", "x" * 129, "1\n2", "ü"])
    def test_what_is_no_id_is_not_sent(self, kms, uid):
        """Ids come from our database, yet never carry a newline to a log (N44)."""
        refused(kms, "no id", uid)

    def test_a_key_that_was_never_activated_is_refused(self, kms):
        """Only active keys are used; the message names the state."""
        uid = make_key(kms, activate=False)
        error = refused(kms, "pre-active", uid)
        assert error.metadata == {"kek": uid, "state": "pre-active"}

    @pytest.mark.parametrize(
        ("reason", "state"),
        [
            (enums.RevocationReasonCode.CESSATION_OF_OPERATION, "deactivated"),
            (enums.RevocationReasonCode.KEY_COMPROMISE, "compromised"),
        ],
    )
    def test_a_revoked_kek_is_refused(self, kms, reason, state):
        """A KEK that the KMS took out of use opens nothing from that moment on."""
        uid = client(kms).create_kek("revoked")
        with raw_kmip(kms) as session:
            session.revoke(reason, uid)
        refused(kms, state, uid)

    @pytest.mark.parametrize(
        ("bits", "algorithm"),
        [
            (128, enums.CryptographicAlgorithm.AES),
            (192, enums.CryptographicAlgorithm.AES),
            (256, enums.CryptographicAlgorithm.CAMELLIA),
        ],
    )
    def test_another_kind_of_key_is_refused(self, kms, bits, algorithm):
        """Length and algorithm are checked, never assumed."""
        refused(kms, "AES-256", make_key(kms, bits=bits, algorithm=algorithm))

    def test_a_kek_of_another_client_is_refused(self, kms):
        """N56, wrong tenant: the KMS does not give one client's key to another."""
        if not (kms.folder / "tenant.key").exists():
            pki.issue(kms.folder, "tenant")
        uid = client(kms).create_kek("ours")
        with pytest.raises(KmsUnavailable, match="refused: "):
            KmipKms(kms.settings("tenant")).get_kek(uid)


class TestFaults:
    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            ("down", "closed the connection"),
            ("slow:30", "did not answer in time"),
            ("truncated", "can't be read"),
        ],
    )
    def test_it_fails_closed_and_recovers_by_itself(self, kms, fault, words):
        """N56: down, slow by 30 s, truncated: KmsUnavailable in time; afterwards all is as before."""
        uid = client(kms).create_kek("kek")
        before = client(kms).get_kek(uid)
        with kms.fault(fault):
            refused(kms, words, uid, timeout_s=0.5)
            assert not client(kms, timeout_s=0.5).health().usable
            with pytest.raises(KmsUnavailable, match=words):
                client(kms, timeout_s=0.5).create_kek("none")
        assert client(kms).get_kek(uid) == before
        assert client(kms).health().usable

    def test_a_wrong_key_opens_nothing(self, kms):
        """N56: a KMS that gives another key is found out by the tag, and the message says it."""
        uid = client(kms).create_kek("kek")
        wrapped = client(kms).wrap(uid, bytearray(VM_KEY), AAD)
        with (
            kms.fault("wrong-key"),
            pytest.raises(KmsUnavailable, match="wrong key"),
        ):
            client(kms).unwrap(uid, wrapped, AAD)
        assert client(kms).unwrap(uid, wrapped, AAD) == VM_KEY

    def test_keks_survive_a_kill(self, tmp_path):
        """A killed KMS refuses connections; when it is back, nothing is lost."""
        with running_kms(tmp_path / "kms") as mortal:
            uid = client(mortal).create_kek("kek")
            before = client(mortal).get_kek(uid)
            mortal.kill(signal.SIGKILL)
            refused(mortal, "is it running", uid)
            mortal.start()
            assert client(mortal).get_kek(uid) == before

    def test_health_says_that_this_is_a_mock(self, kms):
        """Nobody mistakes the development KMS for a KMS."""
        health = client(kms).health()
        assert health.usable
        assert "DEVELOPMENT MOCK" in health.detail
        assert "MOCK" in kms.stderr


class TestIdentities:
    def test_a_client_of_another_ca_is_refused(self, kms, tmp_path):
        """The KMS answers its own clients only."""
        pki.init(tmp_path / "stranger")
        stranger = tmp_path / "stranger"
        refused(
            kms,
            "no TLS connection",
            certificate=stranger / "client.pem",
            key=stranger / "client.key",
        )

    def test_a_certificate_for_servers_is_no_client(self, kms):
        """The extended key usage counts: a stolen server certificate opens no key."""
        with pytest.raises(KmsUnavailable, match=r"no TLS connection|refused"):
            KmipKms(kms.settings("server")).get_kek("1")

    def test_a_server_of_another_ca_is_refused(self, kms, tmp_path):
        """We ask no server that somebody else certified."""
        pki.init(tmp_path / "other")
        refused(kms, "certificate that we do not accept", ca=tmp_path / "other" / "ca.pem")

    def test_a_server_with_another_name_is_refused(self, kms, tmp_path):
        """PyKMIP takes any certificate of the CA; we check that it is the server we meant."""
        folder = tmp_path / "named"
        shutil.copytree(kms.folder, folder)
        pki.issue(
            folder,
            "elsewhere",
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            hosts=("kms.example",),
            addresses=(),
        )
        with odd_server(folder, "elsewhere", b"") as port:
            refused(kms, "do not accept.*127.0.0.1", port=port)

    def test_a_key_that_others_can_read_is_not_used(self, kms, tmp_path):
        """A private key that others could have read is as good as lost (N60)."""
        key = tmp_path / "client.key"
        shutil.copy(kms.folder / "client.key", key)
        key.chmod(0o644)
        refused(kms, "open to others", key=key)

    @pytest.mark.parametrize("field", ["ca", "certificate", "key"])
    def test_missing_files_are_told(self, kms, tmp_path, field):
        """A configuration fault is an answer, not a traceback."""
        refused(kms, "missing", **{field: tmp_path / "absent.pem"})

    def test_files_that_are_no_certificates_are_told(self, kms, tmp_path):
        """Garbage in a file is KmsUnavailable too."""
        (tmp_path / "garbage").write_bytes(b"garbage")
        (tmp_path / "garbage").chmod(0o600)
        refused(kms, "KMS 127.0.0.1", certificate=tmp_path / "garbage")


class TestHostileServers:
    """A server with a good certificate and bad answers."""

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"\x42\x00\x7b\x01\x00",
            b"\x42\x00\x7b\x01\xff\xff\xff\xff",
            b"\x42\x00\x7b\x01\x00\x00\x00\x08canary!!",
            b"HTTP/1.1 200 OK\r\n\r\ncanary canary canary",
            bytes(64),
        ],
    )
    def test_nonsense_is_no_key(self, kms, answer):
        """N56: whatever comes back, the error is ours and quotes nothing of it."""
        with odd_server(kms.folder, "server", answer) as port:
            error = refused(kms, "KMS 127.0.0.1", port=port)
        assert "canary" not in str(error)
        assert error.__suppress_context__

    def test_a_silent_server_is_left_in_time(self, kms):
        """N56: a port that accepts and says nothing costs one timeout."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            refused(kms, "in time", port=silent.getsockname()[1], timeout_s=0.3)

    def test_tls_before_1_2_is_refused(self, kms):
        """A server that only speaks plain text gets no request."""
        with plain_server(b"220 welcome\r\n") as port:
            refused(kms, "no TLS connection", port=port)

    def test_a_name_that_does_not_resolve_is_told(self, kms):
        """RFC 6761: .invalid never resolves."""
        refused(kms, "does not resolve", host="kms.invalid")


class TestSettings:
    @pytest.mark.parametrize(
        "change",
        [
            {"host": ""},
            {"host": "a,b"},
            {"host": "a b"},
            {"host": "a\n"},
            {"port": 0},
            {"port": 65536},
            {"timeout_s": 0},
            {"timeout_s": -1.0},
            {"timeout_s": 301},
            {"version": "1.0"},
            {"version": "2.0"},
        ],
    )
    def test_what_makes_no_sense_is_refused(self, kms, change):
        """PyKMIP takes a comma for a second host and a negative timeout for 30 s; we do not."""
        with pytest.raises(ValueError, match="KM"):
            kms.settings(**change)

    def test_they_tell_no_secret(self, kms):
        """Settings name files; what is in them is not in any repr."""
        settings = kms.settings()
        assert isinstance(settings, KmipSettings)
        assert "PRIVATE KEY" not in repr(settings)


@contextmanager
def plain_server(answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=_answer, args=(listener, None, answer))
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


@contextmanager
def odd_server(folder, name, answer):
    """A TLS server with the CA's certificate that answers one request with ``answer``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=_answer, args=(listener, context, answer))
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def _answer(listener, context, answer):
    connection, _ = listener.accept()
    connection.settimeout(10)
    with connection:
        try:
            peer = context.wrap_socket(connection, server_side=True) if context else connection
            with peer:
                peer.recv(4096)
                peer.sendall(answer)
        except OSError:
            return  # the client left, as it should
