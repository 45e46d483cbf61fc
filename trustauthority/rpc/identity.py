"""From a connection's certificate to a Caller: issuing CA and registered key, never a name.

What it trusts: that gRPC verified the certificate against the host CA and the admin CA. What it adds:
which of the two issued it (by signature, not by name), and whether its key is registered now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from trustauthority.errors import Unauthenticated
from trustauthority.ports import Store
from trustauthority.rpc.authorize import Caller, Listener
from trustauthority.services.identities import key_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRoots:
    """The CAs whose clients may connect."""

    host_ca: x509.Certificate
    admin_ca: x509.Certificate

    @property
    def pem(self) -> bytes:
        """Both, for the TLS stack."""
        encoding = serialization.Encoding.PEM
        return self.host_ca.public_bytes(encoding) + self.admin_ca.public_bytes(encoding)


class CallerResolver:
    """Finds the caller of a connection."""

    def __init__(self, store: Store, roots: TrustRoots | None, listener: Listener) -> None:
        self._store = store
        self._roots = roots
        self.listener = listener

    async def resolve(self, peer: str, auth: Mapping[str, Sequence[bytes]]) -> Caller:
        """The caller behind a connection.

        Raises:
            Unauthenticated: a certificate that neither CA issued or that expired since the handshake,
                or an unknown key.
        """
        if self.listener is Listener.ENROL or self._roots is None:
            return Caller(listener=self.listener, peer=peer)
        pem = next(iter(auth.get("x509_pem_cert", ())), b"")
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            key = certificate.public_key()
        except ValueError as error:
            raise Unauthenticated("the connection shows no usable certificate") from error
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise Unauthenticated("the certificate's key is of an unexpected kind")
        digest = key_sha256(key)
        key_pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        async with self._store.snapshot() as tx:
            if tx.now_ms >= certificate.not_valid_after_utc.timestamp() * 1000:
                raise Unauthenticated("the connection's certificate expired; renew and reconnect")
            if _issued(certificate, self._roots.host_ca):
                host = await tx.hosts.by_tls_key(digest)
                if host is None:
                    raise Unauthenticated("no enrolled host has this key")
                return Caller(
                    listener=self.listener,
                    peer=peer,
                    host=host,
                    certificate_ends_ms=int(certificate.not_valid_after_utc.timestamp() * 1000),
                    key_pem=key_pem,
                )
            if _issued(certificate, self._roots.admin_ca):
                identity = await tx.identities.by_key(digest)
                return Caller(listener=self.listener, peer=peer, identity=identity, key_pem=key_pem)
        raise Unauthenticated("the certificate was not issued by this authority")


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
