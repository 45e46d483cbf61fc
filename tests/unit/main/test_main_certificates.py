"""The servers' certificates can be renewed without anybody noticing, and say when they end."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trustauthority.adapters.keyfiles import SERVER_CA, KeyFiles, private_pem
from trustauthority.main.certificates import (
    SERVER_NAMES,
    certificate_health,
    renew_certificates,
)
from trustauthority.services.certificates import new_authority
from trustauthority.settings import Settings
from trustauthority.v1 import admin_pb2

DAY_MS = 24 * 3_600_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An authority's folder with CAs of ten years and server certificates of ten days."""
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    files = KeyFiles(tmp_path)
    files.folder.mkdir(mode=0o700)
    for name in (SERVER_CA, "host-ca", "admin-ca"):
        files.write_authority(name, new_authority(name, now_ms=now_ms, ttl_ms=3650 * DAY_MS))
    for name in SERVER_NAMES:
        key = ec.generate_private_key(ec.SECP256R1())
        chain = files.authority(SERVER_CA).issue_server(
            key.public_key(), names=["ta.example", "127.0.0.1"], now_ms=now_ms, ttl_ms=10 * DAY_MS
        )
        files.write(files.path(name, "crt"), chain, secret=False)
        files.write(files.path(name), private_pem(key), secret=True)
    return Settings(state_dir=tmp_path, node="ta-1", origin="test")


def test_a_certificate_that_ends_soon_is_a_warning_with_a_remedy(settings: Settings) -> None:
    """Operators hear of an end in time, with what to do (design 10: health with a detail)."""
    items = asyncio.run(certificate_health(KeyFiles(settings.state_dir)))
    by_name = {item.name: item for item in items}
    soon = by_name["certificate server-attest"]
    assert soon.health == admin_pb2.HEALTH_WARNING
    assert "renew-certificates" in soon.detail
    assert by_name["certificate host-ca"].health == admin_pb2.HEALTH_OK


def test_renewed_certificates_keep_names_and_issuer_and_get_new_keys(settings: Settings) -> None:
    """Whoever pinned the CA sees the same server; the old key is worth nothing any more."""
    files = KeyFiles(settings.state_dir)
    before = {name: files.certificate(name) for name in SERVER_NAMES}
    renew_certificates(settings)
    for name, old in before.items():
        new = files.certificate(name)
        new.verify_directly_issued_by(files.certificate(SERVER_CA))
        names = new.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["ta.example"]
        assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
        assert new.public_key() != old.public_key()
        assert files.ec_key(name).public_key() == new.public_key()
        assert files.path(name).stat().st_mode & 0o777 == 0o600
        assert (new.not_valid_after_utc - datetime.now(UTC)).days > 360
