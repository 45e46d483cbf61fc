"""Who we are to a KMS: client certificates and private files, and when they end.

Stage: adapter. Guarantees that a private file which others could have read is not used (N60), that a
server is checked against the configured CAs only, by name, and that an end is told before it comes.
"""

import ssl
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from trustauthority.adapters.kms.secret_file import read_secret
from trustauthority.errors import InsecureFile
from trustauthority.model.kms import HealthState, KmsHealth

DAY_MS = 86_400_000
WARN_CERTIFICATE_MS = 30 * DAY_MS
"""As for the authority's own certificates."""
MAX_SKEW_MS = 60_000
"""Clocks further apart than this break certificates, tokens and signed requests sooner or later."""
_MAX_SECRET = 4096


def client_tls(
    ca: Path, certificate: Path, key: Path, *, minimum: ssl.TLSVersion
) -> ssl.SSLContext:
    """TLS with our certificate; the server needs one of ``ca`` with its name in it.

    Raises:
        InsecureFile: others could have read the key.
        OSError, ssl.SSLError: a file is missing or is not what it should be.
    """
    read_secret(key)
    context = server_tls(ca, minimum=minimum)
    context.load_cert_chain(certificate, key)
    return context


def server_tls(ca: Path, *, minimum: ssl.TLSVersion) -> ssl.SSLContext:
    """TLS to a server with a certificate of ``ca`` and its name in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = minimum
    context.load_verify_locations(ca)
    return context


def read_word(path: Path) -> str:
    """A PIN or token from a private file; one line, its end is cut off.

    Raises:
        InsecureFile: others could have read it, or it holds anything but one line of text.
        OSError: it can't be read.
    """
    content = read_secret(path)
    try:
        word = content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        word = ""
    if not 0 < len(word) <= _MAX_SECRET or not word.isprintable():
        raise InsecureFile(f"{path} does not hold one line of text", path=str(path))
    return word


def certificate_end_ms(path: Path) -> int | None:
    """Unix time at which a certificate (PEM) ends; None when it can't be read."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None
    return int(certificate.not_valid_after_utc.timestamp() * 1000)


def with_expiry(
    health: KmsHealth, *, what: str, end_ms: int | None, now_ms: int, warn_ms: int
) -> KmsHealth:
    """Add the end of a credential; a warning when it is near, an error when it is past."""
    if end_ms is None:
        return health
    health = replace(health, credential_expires_ms=end_ms)
    day = datetime.fromtimestamp(end_ms / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
    if end_ms <= now_ms:
        detail = f"{what} ended at {day}: get a new one; {health.detail}"
        return replace(health, state=HealthState.ERROR, detail=detail)
    if end_ms - now_ms <= warn_ms and health.state is HealthState.OK:
        detail = f"{what} ends at {day}: get a new one before; {health.detail}"
        return replace(health, state=HealthState.WARNING, detail=detail)
    return health


def with_skew(health: KmsHealth, *, server_ms: int | None, now_ms: int) -> KmsHealth:
    """Add what the server's clock says, when it is far from ours."""
    if server_ms is None or abs(server_ms - now_ms) <= MAX_SKEW_MS:
        return health
    seconds = (server_ms - now_ms) // 1000
    way = "ahead of" if seconds > 0 else "behind"
    detail = f"the clock of the KMS is {abs(seconds)} s {way} ours: check NTP; {health.detail}"
    state = HealthState.WARNING if health.state is HealthState.OK else health.state
    return replace(health, state=state, detail=detail)
