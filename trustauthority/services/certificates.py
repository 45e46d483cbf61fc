"""Issue X.509 certificates for hosts, identities and servers: short-lived, keyed by what was proven.

The building blocks are ``cryptography``'s. A certificate names its holder for people's eyes only:
what a caller may do follows from the issuing CA and the registered key (design.md section 7).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "trustauthority"
"""SPIFFE trust domain of the URI names in certificates."""
BACKDATE = timedelta(minutes=5)
"""Certificates begin a little earlier, for clocks that lag."""
Key = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAuthority:
    """A CA that issues leaves of one kind."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The CA certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue_client(self, key: Key, *, path: str, now_ms: int, ttl_ms: int) -> bytes:
        """Issue a client certificate; ``path`` is the SPIFFE path, such as ``/host/h-…``."""
        uri = x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}{path}")
        return self._issue(
            key,
            name=path.rsplit("/", 1)[-1],
            alternatives=[uri],
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
            begin=datetime.fromtimestamp(now_ms / 1000, UTC),
            lifetime=timedelta(milliseconds=ttl_ms),
        )

    def issue_server(self, key: Key, *, names: Sequence[str], now_ms: int, ttl_ms: int) -> bytes:
        """Issue a server certificate for DNS names and IP addresses."""
        return self._issue(
            key,
            name=names[0],
            alternatives=[_alternative(name) for name in names],
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            begin=datetime.fromtimestamp(now_ms / 1000, UTC),
            lifetime=timedelta(milliseconds=ttl_ms),
        )

    def _issue(
        self,
        key: Key,
        *,
        name: str,
        alternatives: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        begin: datetime,
        lifetime: timedelta,
    ) -> bytes:
        end = min(begin + lifetime, self.certificate.not_valid_after_utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(common_name(name))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin - BACKDATE)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_signing_usage(), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM) + self.pem


def new_authority(name: str, *, now_ms: int, ttl_ms: int) -> CertificateAuthority:
    """Make a self-signed CA with a fresh P-256 key."""
    key = ec.generate_private_key(ec.SECP256R1())
    begin = datetime.fromtimestamp(now_ms / 1000, UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(common_name(name))
        .issuer_name(common_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - BACKDATE)
        .not_valid_after(begin + timedelta(milliseconds=ttl_ms))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_issuing_usage(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return CertificateAuthority(certificate=certificate, key=key)


def common_name(name: str) -> x509.Name:
    """A distinguished name with nothing but a common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _signing_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issuing_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
