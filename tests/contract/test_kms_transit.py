"""What only transit has: sealing, versions of a key, logins by certificate and token, policies."""

import ssl

import pytest
from support.kms_peers import AAD, VM_KEY
from support.kms_suite import each_peer
from support.transit_peer import TransitPeer

from kms_mock import pki
from trustauthority.adapters.kms.port import is_outage
from trustauthority.errors import KmsUnavailable
from trustauthority.model.kms import HealthState

pytestmark = each_peer((TransitPeer,))


@pytest.fixture
def token(peer, tmp_path):
    """A token of the client's policy, in a private file."""

    def make(**options):
        peer.admin.adapter.close()
        made = peer.admin.auth.token.create(policies=["client"], no_parent=True, **options)
        path = tmp_path / "token"
        path.touch(mode=0o600)
        path.write_text(made["auth"]["client_token"] + "\n")
        return {"certificate": None, "key": None, "role": "", "token": path}

    return make


class TestSealing:
    def test_a_sealed_server_is_an_outage_that_ends_with_the_unsealing(self, peer):
        """Sealed: no key, a word that says what to do, and nothing to do here afterwards."""
        kms = peer.kms()
        kek, wrapped = peer.kek, peer.wrapped
        assert kms.unwrap(kek, wrapped, AAD) == VM_KEY
        peer.admin.adapter.close()
        peer.admin.sys.seal()
        try:
            with pytest.raises(KmsUnavailable, match="is sealed: unseal it") as caught:
                kms.unwrap(kek, wrapped, AAD)
            assert is_outage(caught.value)
            health = kms.health()
            assert (health.state, health.trusts_server) == (HealthState.ERROR, True)
            assert "sealed" in health.detail
        finally:
            peer.unseal()
        assert kms.unwrap(kek, wrapped, AAD) == VM_KEY


class TestVersions:
    def test_an_id_names_one_version(self, peer):
        """NAME:VERSION: rotating in the engine gives another id, and both stay usable."""
        kms = peer.kms()
        first = kms.create_kek("ta-kek-versions")
        assert first.endswith(":1")
        assert kms.rotate(first, "ta-kek-versions") == first.replace(":1", ":2")

    def test_a_rotation_behind_our_back_changes_nothing(self, peer):
        """auto_rotate or an administrator: what we wrap is still under the version we named."""
        kms = peer.kms()
        kek = kms.create_kek("ta-kek-auto")
        peer.admin.adapter.close()
        peer.admin.write(f"transit/keys/{kek.partition(':')[0]}/rotate")
        blob = kms.wrap(kek, bytearray(VM_KEY), AAD)
        assert b"vault:v1:" in blob
        assert kms.unwrap(kek, blob, AAD) == VM_KEY

    @pytest.mark.parametrize(
        "kek", ["ta-kek-x:0", "ta-kek-x", ":1", "ta-kek-x:1:1", "a/b:1", "..:1"]
    )
    def test_what_is_no_id_reaches_no_path(self, peer, kek):
        """An id becomes a part of a URL: only its own grammar gets there."""
        with pytest.raises(KmsUnavailable, match="no id"):
            peer.kms().wrap(kek, bytearray(VM_KEY), AAD)

    def test_a_version_that_is_not_there_is_refused(self, peer):
        """A row that names a version of the future wraps nothing."""
        with pytest.raises(KmsUnavailable):
            peer.kms().wrap(peer.kek.replace(":1", ":7"), bytearray(VM_KEY), AAD)

    def test_an_exportable_key_is_not_taken(self, peer, monkeypatch):
        """A key that its administrators can read out is no KEK that stays inside."""
        peer.admin.adapter.close()
        peer.admin.write("transit/keys/ta-kek-open-00000000", type="aes256-gcm96", exportable=True)
        monkeypatch.setattr("secrets.token_hex", lambda _: "00000000")
        with pytest.raises(KmsUnavailable, match="stays in it"):
            peer.kms().create_kek("ta-kek-open")


class TestLogin:
    def test_a_token_does_instead_of_a_certificate(self, peer, token):
        """From a private file; its end is watched."""
        kms = peer.kms(**token(ttl="240h"))
        assert kms.unwrap(peer.kek, peer.wrapped, AAD) == VM_KEY
        health = kms.health()
        assert health.state is HealthState.OK
        assert health.credential_expires_ms is not None

    def test_a_token_that_ends_soon_is_told(self, peer, token):
        """Seven days of warning."""
        health = peer.kms(**token(ttl="24h")).health()
        assert health.state is HealthState.WARNING
        assert "get a new one before" in health.detail

    def test_a_token_that_was_revoked_opens_nothing(self, peer, token):
        """Revoked in the middle: the next use is refused, and says where to look."""
        login = token(ttl="240h")
        kms = peer.kms(**login)
        kek, wrapped = peer.kek, peer.wrapped
        assert kms.unwrap(kek, wrapped, AAD) == VM_KEY
        peer.admin.adapter.close()
        peer.admin.auth.token.revoke(login["token"].read_text().strip())
        with pytest.raises(KmsUnavailable, match="does not allow that"):
            kms.unwrap(kek, wrapped, AAD)
        assert kms.health().state is HealthState.ERROR

    def test_a_login_that_ended_is_repeated_once(self, peer):
        """Batch tokens live for minutes: a child that has an old one logs in again by itself."""
        kms = peer.kms()
        kek, wrapped = peer.kek, peer.wrapped
        assert kms.unwrap(kek, wrapped, AAD) == VM_KEY
        kms._client.token = "s.aaaaaaaaaaaaaaaaaaaaaaaa"
        assert kms.unwrap(kek, wrapped, AAD) == VM_KEY

    def test_the_policy_is_enough_and_no_more(self, peer):
        """What docs/how-to/connect-a-kms.md grants: our KEKs, no export, no deletion, no others."""
        client = peer.kms()._logged_in()
        try:
            for path in ("transit/export/encryption-key/ta-kek-x", "sys/mounts", "transit/keys/x"):
                with pytest.raises(Exception, match=r"permission denied|1 error"):
                    client.read(path)
            with pytest.raises(Exception, match=r"permission denied|1 error"):
                client.delete(f"transit/keys/{peer.kek.partition(':')[0]}")
        finally:
            client.adapter.close()


class TestServer:
    def test_a_server_with_another_name_is_refused(self, peer):
        """The certificate carries 127.0.0.1 and localhost, and nothing else."""
        kms = peer.kms(url=f"https://127.0.0.2:{peer.relay.port}")
        with pytest.raises(KmsUnavailable):
            kms.create_kek("none")

    def test_tls_1_2_is_not_spoken(self, peer):
        """TLS 1.3 or nothing, whatever the server offers."""
        assert _context_of(peer).minimum_version == ssl.TLSVersion.TLSv1_3

    def test_a_certificate_of_another_ca_does_not_log_in(self, peer, tmp_path):
        """The login checks the chain, not only the name."""
        pki.init(tmp_path / "other")
        kms = peer.kms(
            certificate=tmp_path / "other" / "client.pem", key=tmp_path / "other" / "client.key"
        )
        with pytest.raises(KmsUnavailable, match="does not know us"):
            kms.unwrap(peer.kek, peer.wrapped, AAD)


def _context_of(peer):
    client = peer.kms()._logged_out()
    try:
        return client.session.get_adapter("https://")._context
    finally:
        client.adapter.close()
