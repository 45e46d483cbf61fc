"""What only KMIP has: states, versions, several servers, wrapped Get, hostile answers.

The contract of all kinds is in test_kms_contract.
"""

import shutil
import signal
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from kmip.core import enums
from kmip.core.messages.contents import ResultStatus
from kmip.services.kmip_client import KMIPProxy
from kmip.services.results import DiscoverVersionsResult
from support.kms_process import running_kms

from kms_mock import pki
from trustauthority.adapters.kms.kmip import KmipKms
from trustauthority.adapters.kms.port import is_outage
from trustauthority.adapters.kms.settings import KmipSettings
from trustauthority.errors import KmsUnavailable
from trustauthority.model.kms import HealthState


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
    session = client(kms)._servers.all[0].connect()
    try:
        yield session
    finally:
        session.proxy.close()


def make_key(
    kms, *, bits=256, algorithm=enums.CryptographicAlgorithm.AES, activate=True, masks=None
):
    masks = masks or [enums.CryptographicUsageMask.ENCRYPT]
    with raw_kmip(kms) as session:
        uid = session.create(algorithm, bits, name="odd", cryptographic_usage_mask=masks)
        if activate:
            session.activate(uid)
    return uid


class TestKeks:
    @pytest.mark.parametrize("version", ["1.1", "1.2", "1.3", "1.4", "2.0"])
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
            ("wrong-tenant", "refused: permission denied|refused: item not found"),
            ("revoked", "does not accept our client certificate: certificate revoked"),
        ],
    )
    def test_it_fails_closed_and_recovers_by_itself(self, kms, fault, words):
        """N56: down, slow by 30 s, truncated: KmsUnavailable in time; afterwards all is as before."""
        uid = client(kms).create_kek("kek")
        before = client(kms).get_kek(uid)
        with kms.fault(fault):
            refused(kms, words, uid, timeout_s=0.5)
            if fault != "wrong-tenant":  # whose keys those are is not asked by Query and Create
                assert not client(kms, timeout_s=0.5).health().usable
                with pytest.raises(KmsUnavailable, match=words):
                    client(kms, timeout_s=0.5).create_kek("none")
        assert client(kms).get_kek(uid) == before
        assert client(kms).health().usable

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


class TestSeveralServers:
    """One KMS, more than one server: the next is asked when one does not answer."""

    @pytest.fixture
    def gone(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            return taken.getsockname()[1]

    def both(self, kms, gone, **changes):
        """A client whose first server is gone."""
        return client(kms, port=gone, more_servers=(f"127.0.0.1:{kms.port}",), **changes)

    def test_the_second_answers_when_the_first_is_gone(self, kms, gone):
        """Failover for everything, a new KEK too: nothing was sent to the first."""
        provider = self.both(kms, gone)
        uid = provider.create_kek("kek")
        assert provider.get_kek(uid) == client(kms).get_kek(uid)

    def test_the_one_that_answered_is_asked_first_from_then_on(self, kms):
        """A dead first server costs one time limit per child, not one per key."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            provider = self.both(kms, silent.getsockname()[1], timeout_s=1.0)
            uid = provider.create_kek("kek")
            begun = time.monotonic()
            for _ in range(3):
                provider.get_kek(uid)
            assert time.monotonic() - begun < 1.0 + 2.0

    def test_health_warns_of_one_that_is_gone(self, kms, gone):
        """A KMS without its spare works, and somebody should look."""
        health = self.both(kms, gone).health()
        assert health.state is HealthState.WARNING
        assert health.detail.startswith("1 of 2 servers fail")
        assert "is it running" in health.detail

    def test_all_gone_is_told_of_each(self, gone, kms):
        """Every server is named with what is wrong with it."""
        provider = client(kms, port=gone, more_servers=(f"127.0.0.1:{gone}",))
        with pytest.raises(KmsUnavailable, match=r"running\?; KMS 127") as caught:
            provider.get_kek("1")
        assert is_outage(caught.value)
        assert provider.health().state is HealthState.ERROR

    def test_a_server_that_says_no_is_not_gone_around(self, kms, gone):
        """A refusal is the KMS's answer; asking the next one would be shopping."""
        uid = client(kms).create_kek("revoked")
        client(kms).revoke(uid, compromised=False)
        provider = client(kms, more_servers=(f"127.0.0.1:{gone}",))
        with pytest.raises(KmsUnavailable, match="deactivated") as caught:
            provider.get_kek(uid)
        assert "running" not in str(caught.value)

    def test_a_second_server_that_is_not_ours_is_not_believed(self, kms, gone, tmp_path):
        """Failover never lowers the bar: the next server needs the right certificate too."""
        with running_kms(tmp_path / "other") as other:
            provider = client(kms, port=gone, more_servers=(f"127.0.0.1:{other.port}",))
            with pytest.raises(KmsUnavailable, match="certificate that we do not accept"):
                provider.get_kek("1")


class TestTransportKey:
    """The KEK leaves the KMS wrapped by a second key, which lies here in a private file."""

    @pytest.fixture
    def transport(self, kms, tmp_path):
        uid = make_key(kms, masks=[enums.CryptographicUsageMask.WRAP_KEY])
        path = tmp_path / "transport.key"
        path.touch(mode=0o600)
        path.write_bytes(client(kms).get_kek(uid))
        return {"transport_key_id": uid, "transport_key": path}

    def test_the_kek_arrives_wrapped_and_is_the_same(self, kms, transport):
        """RFC 3394 by the KMS, unwrapped here: the same KEK as in the clear."""
        uid = client(kms).create_kek("kek")
        assert client(kms, **transport).get_kek(uid) == client(kms).get_kek(uid)

    def test_a_blob_does_not_depend_on_how_the_kek_came(self, kms, transport):
        """Turning it on needs no rewrap."""
        uid = client(kms).create_kek("kek")
        wrapped = client(kms).wrap(uid, bytearray(b"key"), b"aad")
        assert client(kms, **transport).unwrap(uid, wrapped, b"aad") == b"key"

    def test_another_transport_key_unwraps_nothing(self, kms, transport):
        """A wrong file is told, and is no key."""
        uid = client(kms).create_kek("kek")
        transport["transport_key"].write_bytes(bytes(32))
        refused(kms, "transport key does not unwrap", uid, **transport)
        transport["transport_key"].write_bytes(b"short")
        refused(kms, "transport key does not unwrap", uid, **transport)

    def test_a_file_that_others_can_read_is_not_used(self, kms, transport):
        """N60: it would be no second lock."""
        uid = client(kms).create_kek("kek")
        transport["transport_key"].chmod(0o640)
        refused(kms, "open to others", uid, **transport)

    def test_one_that_the_kms_does_not_have_is_told(self, kms, transport):
        """Nothing falls back to a KEK in the clear."""
        uid = client(kms).create_kek("kek")
        refused(kms, "refused: ", uid, **(transport | {"transport_key_id": "987654"}))


class TestAdministration:
    def test_keys_are_located_by_name(self, kms):
        """Names are not unique: all ids come back, and those of others do not."""
        ours = {client(kms).create_kek("ta-located") for _ in range(2)}
        assert set(client(kms).locate("ta-located")) == ours
        assert client(kms).locate("ta-nobody") == ()

    def test_what_is_destroyed_is_gone(self, kms):
        """Revoke, then destroy: there is no way back."""
        uid = client(kms).create_kek("gone")
        with pytest.raises(KmsUnavailable, match="refused"):
            client(kms).destroy(uid)
        client(kms).revoke(uid, compromised=True)
        client(kms).destroy(uid)
        refused(kms, "not found", uid)


class TestHealth:
    @pytest.mark.parametrize(
        ("fault", "way"), [("skew:7200", "ahead of"), ("skew:-7200", "behind")]
    )
    def test_a_clock_that_is_off_is_told(self, kms, fault, way):
        """The server's own time stamp says it."""
        with kms.fault(fault):
            health = client(kms).health()
        assert health.state is HealthState.WARNING
        assert way in health.detail

    @pytest.mark.parametrize(
        ("days", "state"),
        [(29, HealthState.WARNING), (31, HealthState.OK), (-1, HealthState.ERROR)],
    )
    def test_the_end_of_our_certificate_is_told_before_it_comes(self, kms, days, state):
        """30 days of warning; afterwards an error that says what to do."""
        name = f"ends-{days}"
        if not (kms.folder / f"{name}.pem").exists():
            pki.issue(kms.folder, name, lifetime=timedelta(days=days))
        health = KmipKms(kms.settings(name)).health()
        assert health.state is state
        assert health.credential_expires_ms is not None
        if state is not HealthState.OK:
            assert "get a new one" in health.detail

    def test_a_version_that_the_server_does_not_list_is_told(self, kms, monkeypatch):
        """Discover Versions: a mismatch is found before the first key is needed."""
        none = DiscoverVersionsResult(ResultStatus(enums.ResultStatus.SUCCESS))
        monkeypatch.setattr(KMIPProxy, "discover_versions", lambda _: none)
        health = client(kms).health()
        assert health.state is HealthState.ERROR
        assert "does not list version 1.4" in health.detail


class TestIdentities:
    def test_a_client_of_another_ca_is_refused(self, kms, tmp_path):
        """The KMS answers its own clients only."""
        pki.init(tmp_path / "stranger")
        stranger = tmp_path / "stranger"
        refused(
            kms,
            "does not accept our client certificate: (unknown ca|decrypt error)",
            certificate=stranger / "client.pem",
            key=stranger / "client.key",
        )

    def test_a_certificate_for_servers_is_no_client(self, kms):
        """The extended key usage counts: a stolen server certificate opens no key."""
        with pytest.raises(KmsUnavailable, match=r"does not accept our client certificate|refused"):
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
        assert error.__suppress_context__ or error.__context__ is None

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
            {"version": "2.1"},
            {"more_servers": ("a b",)},
            {"more_servers": ("kms-2:x",)},
            {"more_servers": ("kms-2:0",)},
            {"transport_key_id": "7"},
            {"transport_key": Path("/etc/key")},
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
