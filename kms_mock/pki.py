"""The mock's own CA: certificates for the server on this machine and for its clients.

Private keys are written 0600 and never replaced. Nothing here is meant to be trusted elsewhere.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_NAME = "kms-mock CA (development only)"
_LIFETIME = timedelta(days=365)
_BACKDATED = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Issuer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def init(folder: Path) -> None:
    """Make a CA, the server's certificate and one client's (``client``) in a new folder.

    Raises FileExistsError when there is a CA already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    _write_key(folder / "ca.key", key)
    name = _name(CA_NAME)
    builder = _builder(name, name, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(certificates=True), critical=True)
    (folder / "ca.pem").write_bytes(_pem(builder.sign(key, hashes.SHA256())))
    issue(folder, "server", usage=ExtendedKeyUsageOID.SERVER_AUTH)
    issue(folder, "client", usage=ExtendedKeyUsageOID.CLIENT_AUTH)


def issue(
    folder: Path,
    name: str,
    *,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    hosts: tuple[str, ...] = ("localhost",),
    addresses: tuple[str, ...] = ("127.0.0.1",),
    lifetime: timedelta = _LIFETIME,
) -> None:
    """Write ``NAME.pem`` and ``NAME.key``. To the KMS, the name is whose keys are whose.

    A negative ``lifetime`` makes a certificate that has ended.

    Raises FileExistsError when there is such a key already, ValueError for a name with a path.
    """
    if not name or not all(c.isalnum() or c in "-_" for c in name):
        raise ValueError("names have letters, digits, - and _")
    issuer = _load_issuer(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    _write_key(folder / f"{name}.key", key)
    builder = _builder(_name(name), issuer.certificate.subject, key.public_key(), lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if usage == ExtendedKeyUsageOID.SERVER_AUTH:
        names: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
        names += [x509.IPAddress(IPv4Address(address)) for address in addresses]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    (folder / f"{name}.pem").write_bytes(_pem(builder.sign(issuer.key, hashes.SHA256())))


def revoke_all(folder: Path) -> Path:
    """Write a revocation list with every certificate of the folder; returns its path."""
    issuer, now = _load_issuer(folder), datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - _BACKDATED)
        .next_update(now + _LIFETIME)
    )
    for path in folder.glob("*.pem"):
        number = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
        revoked = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(now)
        builder = builder.add_revoked_certificate(revoked.build())
    list_path = folder / "revoked.crl"
    signed = builder.sign(issuer.key, hashes.SHA256())
    list_path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return list_path


def _load_issuer(folder: Path) -> _Issuer:
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("ca.key is not ours")  # noqa: TRY004  a file, not an argument, is wrong
    certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    return _Issuer(certificate=certificate, key=key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    lifetime: timedelta = _LIFETIME,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + lifetime) - _BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
