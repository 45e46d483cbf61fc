"""The authority's keys and CAs as files of its state folder, readable by their owner only (N60)."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from joserfc.jwk import ECKey, KeySet

from trustauthority.errors import ConfigurationInvalid, InsecureFile
from trustauthority.services.certificates import CertificateAuthority

HOST_CA, ADMIN_CA, SERVER_CA = "host-ca", "admin-ca", "authority-ca"
REPORT_KEY, RELEASE_KEY, AUDIT_KEY = "report-key", "release-key", "audit-key"
CHALLENGE_KEY = "challenge-key"
ESCROW_KEY = "escrow-key"
"""Only its public part is ever here."""
IMPORT_KEY = "import-key"
DATABASE = "authority.db"


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Names of the files below ``keys/`` of a state folder."""

    state_dir: Path

    @property
    def folder(self) -> Path:
        """Where the keys lie."""
        return self.state_dir / "keys"

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.state_dir / DATABASE

    def path(self, name: str, suffix: str = "key") -> Path:
        """The file of one key or certificate."""
        return self.folder / f"{name}.{suffix}"

    # --- writing -------------------------------------------------------------------------------

    def write(self, path: Path, content: bytes, *, secret: bool) -> None:
        """Write a new file with the right mode from its first byte on; never replaces one."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(path, flags, 0o600 if secret else 0o644), "wb") as file:
            file.write(content)

    def write_authority(self, name: str, authority: CertificateAuthority) -> None:
        """Write a CA."""
        self.write(self.path(name, "crt"), authority.pem, secret=False)
        self.write(self.path(name), private_pem(authority.key), secret=True)

    # --- reading -------------------------------------------------------------------------------

    def require_private(self) -> None:
        """Check the folder of the keys: public parts and CA certificates are only as good as it is.

        Raises:
            InsecureFile: others can look into it or change it. ConfigurationInvalid: it is not there.
        """
        try:
            status = self.folder.stat()
        except OSError as error:
            raise ConfigurationInvalid(
                f"can't read {self.folder}: {error.strerror}; trustauthority init makes it",
                path=str(self.folder),
            ) from error
        if _open_to_others(status):
            raise InsecureFile(
                f"{self.folder} holds keys and is open to others; run: chmod 700 {self.folder}",
                path=str(self.folder),
            )

    def secret(self, name: str) -> bytes:
        """Read a secret file.

        Raises:
            InsecureFile: others can read or change it. ConfigurationInvalid: it is not there.
        """
        path = self.path(name)
        try:
            status = path.stat()
            content = path.read_bytes()
        except OSError as error:
            raise ConfigurationInvalid(
                f"can't read {path}: {error.strerror}", path=str(path)
            ) from error
        if _open_to_others(status):
            raise InsecureFile(
                f"{path} holds a secret and is open to others; run: chmod 600 {path}",
                path=str(path),
            )
        return content

    def certificate(self, name: str) -> x509.Certificate:
        """Read a CA certificate."""
        path = self.path(name, "crt")
        try:
            return x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationInvalid(f"can't read {path}: {error}", path=str(path)) from error

    def authority(self, name: str) -> CertificateAuthority:
        """Read a CA with its key."""
        return CertificateAuthority(certificate=self.certificate(name), key=self.ec_key(name))

    def ec_key(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Read a P-256 key."""
        key = serialization.load_pem_private_key(self.secret(name), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigurationInvalid(f"{self.path(name)} is no EC key", path=str(self.path(name)))
        return key

    def audit_key(self) -> Ed25519PrivateKey:
        """Read the audit log's key."""
        key = serialization.load_pem_private_key(self.secret(AUDIT_KEY), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationInvalid("the audit key is no Ed25519 key", path=AUDIT_KEY)
        return key

    def report_key(self) -> ECKey:
        """Read the key that signs reports and verdict seals."""
        return ECKey.import_key(private_pem(self.ec_key(REPORT_KEY)))

    def report_keys(self) -> KeySet:
        """The public keys by which reports and seals verify."""
        content = self.path(REPORT_KEY, "pub").read_bytes()
        return KeySet([ECKey.import_key(content)])

    def import_public(self) -> bytes:
        """The public part (X25519, 32 bytes) of the key that passphrases are imported by.

        Empty when this authority has none.
        """
        path = self.path(IMPORT_KEY, "pub")
        if not path.exists():
            return b""
        key = serialization.load_pem_public_key(path.read_bytes())
        if not isinstance(key, X25519PublicKey):
            raise ConfigurationInvalid("the import key is no X25519 key", path=str(path))
        return key.public_bytes_raw()

    def release_public(self) -> ec.EllipticCurvePublicKey:
        """The public part of the release key."""
        key = serialization.load_pem_public_key(self.path(RELEASE_KEY, "pub").read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ConfigurationInvalid("the release key is no EC key", path=RELEASE_KEY)
        return key

    def authority_ca_sha256(self) -> bytes:
        """SHA-256 of the CA certificate that agents pin."""
        der = self.certificate(SERVER_CA).public_bytes(serialization.Encoding.DER)
        return hashlib.sha256(der).digest()


def _open_to_others(status: os.stat_result) -> bool:
    shared = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return bool(shared) or status.st_uid not in (0, os.getuid())


def private_pem(
    key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey | X25519PrivateKey,
) -> bytes:
    """PKCS#8 in PEM, not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem(key: ec.EllipticCurvePublicKey | X25519PublicKey) -> bytes:
    """SubjectPublicKeyInfo in PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
