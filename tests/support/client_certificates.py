"""Certificates for tests of clients: a CA, a server on 127.0.0.1, and people; made anew each run."""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

FROM = datetime(2026, 1, 1, tzinfo=UTC)
UNTIL = datetime(2045, 1, 1, tzinfo=UTC)


class CertificateAuthority:
    """One CA that certifies whatever a test asks for."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = _name(name)
        self.certificate = self._build(self.subject, self.key.public_key(), FROM, UNTIL, ca=True)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, name: str, *, start: datetime = FROM, end: datetime = UNTIL
    ) -> tuple[bytes, bytes]:
        """A certificate for 127.0.0.1 and its private key, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._build(_name(name), key.public_key(), start, end, ca=False)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return certificate.public_bytes(serialization.Encoding.PEM), private

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        start: datetime,
        end: datetime,
        *,
        ca: bool,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            names = [x509.IPAddress(IPv4Address("127.0.0.1")), x509.DNSName("localhost")]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def write_identity(
    folder: Path, ca: CertificateAuthority, name: str, *, start: datetime = FROM, left: timedelta
) -> None:
    """Write ``name.pem`` and ``name.key`` (0600); the certificate ends ``left`` after ``start``."""
    certificate, key = ca.issue(name, start=start, end=start + left)
    (folder / f"{name}.pem").write_bytes(certificate)
    (folder / f"{name}.key").write_bytes(key)
    (folder / f"{name}.key").chmod(0o600)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
