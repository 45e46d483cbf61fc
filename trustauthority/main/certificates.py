"""The servers' own certificates: how long they last, and new ones.

Their CA is pinned by hosts and people, so a new certificate changes nothing for them.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trustauthority.adapters.clock import SystemClock
from trustauthority.adapters.keyfiles import SERVER_CA, KeyFiles, private_pem
from trustauthority.settings import Settings
from trustauthority.v1 import admin_pb2

SERVER_NAMES = ("server-attest", "server-key")
SERVER_TTL_MS = 365 * 24 * 3_600_000
WARN_BEFORE = timedelta(days=30)
REMEDY = "run trustauthority renew-certificates, then restart the processes"


async def certificate_health(files: KeyFiles) -> Sequence[admin_pb2.HealthItem]:
    """How long the certificates of the servers and CAs still last."""
    now = datetime.now(UTC)
    items = []
    for name in (*SERVER_NAMES, SERVER_CA, "host-ca", "admin-ca"):
        left = files.certificate(name).not_valid_after_utc - now
        if left <= timedelta():
            state, detail = admin_pb2.HEALTH_ERROR, f"expired; {REMEDY}"
        elif left < WARN_BEFORE:
            state, detail = admin_pb2.HEALTH_WARNING, f"expires in {left.days} days; {REMEDY}"
        else:
            state, detail = admin_pb2.HEALTH_OK, f"{left.days} days left"
        items.append(admin_pb2.HealthItem(name=f"certificate {name}", health=state, detail=detail))
    return items


def renew_certificates(settings: Settings) -> list[str]:
    """Make new keys and certificates for the servers, for the names that they have."""
    files = KeyFiles(settings.state_dir)
    authority = files.authority(SERVER_CA)
    lines = []
    for name in SERVER_NAMES:
        names = _names(files.certificate(name))
        key = ec.generate_private_key(ec.SECP256R1())
        chain = authority.issue_server(
            key.public_key(), names=names, now_ms=SystemClock().now_ms(), ttl_ms=SERVER_TTL_MS
        )
        for suffix, content in (("key", private_pem(key)), ("crt", chain)):
            fresh = files.path(name, f"{suffix}.new")
            fresh.unlink(missing_ok=True)
            files.write(fresh, content, secret=suffix == "key")
        for suffix in ("key", "crt"):
            files.path(name, f"{suffix}.new").replace(files.path(name, suffix))
        expires = files.certificate(name).not_valid_after_utc.date()
        lines.append(f"{name}: {', '.join(names)}; until {expires}")
    return lines


def _names(certificate: x509.Certificate) -> list[str]:
    """The DNS names and addresses of a server certificate."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]
