"""What only AWS KMS has: key states that we check ourselves, the encryption context, credentials files."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from support.aws_peers import MiniStackPeer, MotoPeer
from support.kms_peers import AAD, VM_KEY
from support.kms_suite import each_peer

from trustauthority.adapters.kms.port import is_outage
from trustauthority.errors import KmsUnavailable
from trustauthority.model.kms import HealthState

BOTH = each_peer((MotoPeer, MiniStackPeer))


def admin(peer):
    return peer.client("kms", *getattr(peer, "_admin", ("111111111111",)))


class TestStates:
    @BOTH
    @pytest.mark.parametrize(
        ("change", "state"),
        [
            (lambda kms, key: kms.disable_key(KeyId=key), "disabled"),
            (
                lambda kms, key: kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7),
                "pending-deletion",
            ),
        ],
    )
    def test_a_kek_that_is_not_enabled_is_refused(self, peer, change, state):
        """moto decrypts with both: we look at the state before each use, and name it."""
        kms = peer.kms()
        kek = kms.create_kek("ta-kek-state")
        wrapped = kms.wrap(kek, bytearray(VM_KEY), AAD)
        change(admin(peer), kek)
        with pytest.raises(KmsUnavailable, match=f"is {state} in the KMS, not enabled") as caught:
            kms.unwrap(kek, wrapped, AAD)
        assert not is_outage(caught.value)

    @BOTH
    def test_a_key_for_something_else_is_refused(self, peer):
        """A signing key under that id is no KEK."""
        made = admin(peer).create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")
        with pytest.raises(KmsUnavailable, match="no symmetric key"):
            peer.kms().wrap(made["KeyMetadata"]["KeyId"], bytearray(VM_KEY), AAD)


class TestContext:
    @each_peer((MotoPeer,))
    def test_it_is_the_aad_and_can_be_read_in_the_trail(self, peer, monkeypatch):
        """An auditor of AWS sees which VM a Decrypt was for."""
        kms, seen = peer.kms(), []
        client = kms._client(kms._credentials())
        client.meta.events.register(
            "before-call.kms.Decrypt", lambda params, **_: seen.append(json.loads(params["body"]))
        )
        kms.unwrap(peer.kek, peer.wrapped, AAD)
        (body,) = seen
        assert body["EncryptionContext"] == {"aad": AAD.decode(), "trustauthority": "010405"}
        assert body["KeyId"] == peer.kek

    @BOTH
    def test_the_vm_key_is_never_sent(self, peer):
        """Only one-time keys go to AWS."""
        kms, bodies = peer.kms(), []
        client = kms._client(kms._credentials())
        client.meta.events.register(
            "before-call.kms.*", lambda params, **_: bodies.append(params["body"])
        )
        wrapped = kms.wrap(peer.kek, bytearray(VM_KEY), AAD)
        assert kms.unwrap(peer.kek, wrapped, AAD) == VM_KEY
        assert len(bodies) == 4
        assert not any(VM_KEY in each or b"cGFzc3BocmFzZ" in each for each in bodies)


class TestCredentials:
    @each_peer((MotoPeer,))
    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"\xff", b"[default]\n", b"aws_access_key_id=x"),
            b"[other]\naws_access_key_id=x\naws_secret_access_key=y\n",
            b"[default]\naws_access_key_id=x\n",
        ],
    )
    def test_a_file_that_holds_none_is_told(self, peer, tmp_path, content):
        """No credentials means no request; nothing is looked for elsewhere."""
        path = tmp_path / "credentials"
        path.touch(mode=0o600)
        path.write_bytes(content)
        with pytest.raises(KmsUnavailable, match="not what it should be"):
            peer.kms(credentials=path).create_kek("none")

    @each_peer((MotoPeer,))
    @pytest.mark.parametrize(
        ("minutes", "state"),
        [(30, HealthState.WARNING), (120, HealthState.OK), (-1, HealthState.ERROR)],
    )
    def test_the_end_of_temporary_ones_is_told(self, peer, tmp_path, minutes, state):
        """Whoever rotates the file writes when it ends; a rotation that stopped is seen in time."""
        end = (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()
        path = tmp_path / "credentials"
        path.touch(mode=0o600)
        text = peer.settings().credentials.read_text()
        path.write_text(f"{text}x_security_token_expires = {end}\n")
        health = peer.kms(credentials=path).health()
        assert health.state is state
        assert health.credential_expires_ms is not None

    @each_peer((MotoPeer,))
    def test_nothing_of_the_environment_is_read(self, peer, monkeypatch, tmp_path):
        """Neither variables nor a home folder choose who we are or whom we ask."""
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASTRANGER")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stranger")
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "https://127.0.0.1:1")
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        assert peer.kms().unwrap(peer.kek, peer.wrapped, AAD) == VM_KEY

    @each_peer((MotoPeer,))
    def test_they_are_in_no_repr(self, peer):
        """A traceback that shows locals shows no secret."""
        kms = peer.kms()
        assert not re.search("secret|AKIA", repr(kms._credentials()), re.IGNORECASE)
