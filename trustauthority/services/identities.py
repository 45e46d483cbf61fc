"""People and programs that may call: a registered key with roles, certified by the admin CA."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from trustauthority.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound
from trustauthority.model.audit import AuditEvent
from trustauthority.model.catalogue import IdentityEntry, Role
from trustauthority.model.identifiers import is_name
from trustauthority.ports import Store
from trustauthority.services.certificates import Key
from trustauthority.services.secrets import AuthoritySecrets

DAY_MS = 24 * 3_600_000
DEFAULT_TTL_MS = 30 * DAY_MS
MAX_TTL_MS = 365 * DAY_MS
MAX_REQUEST_BYTES = 16_384
SEPARATED = (
    (Role.POLICY, Role.KEYS, "holds both policy and keys: one person could widen trust and use it"),
    (Role.IDENTITY, Role.KEYS, "holds both identity and keys: it can give itself any other role"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedIdentity:
    """A certificate and what is worth saying about it."""

    certificate_chain: bytes
    entry: IdentityEntry
    warnings: tuple[str, ...]


class IdentityService:
    """Issue, renew, revoke, list."""

    def __init__(self, store: Store, keys: AuthoritySecrets) -> None:
        self._store = store
        self._keys = keys

    async def issue(
        self, *, name: str, roles: frozenset[Role], request: bytes, ttl_ms: int, by: str
    ) -> IssuedIdentity:
        """Certify the key of a PKCS#10 request and register it with roles."""
        if not is_name(name):
            raise InvalidRequest("name: 1-63 characters of a-z 0-9 . _ -", field="name")
        if not roles:
            raise InvalidRequest("an identity needs at least one role", field="roles")
        return await self._certify(
            name=name, roles=roles, key=_requested_key(request), ttl_ms=ttl_ms, by=by
        )

    async def renew(self, entry: IdentityEntry, key: Key, *, ttl_ms: int) -> IssuedIdentity:
        """A new certificate for a registered key, which the caller just used."""
        return await self._certify(
            name=entry.name, roles=entry.roles, key=key, ttl_ms=ttl_ms, by=f"identity:{entry.name}"
        )

    async def revoke(self, name: str, *, by: str) -> None:
        """Stop an identity at once: every call looks its key up."""
        async with self._store.transaction() as tx:
            if not await tx.identities.revoke(name):
                raise NotFound(f"there is no identity {name!r}", kind="identity", name=name)
            await tx.audit.append(
                AuditEvent(actor=by, operation="identity.revoke", subject=name, decision="done")
            )

    async def entries(self) -> Sequence[IdentityEntry]:
        """List identities."""
        async with self._store.snapshot() as tx:
            return await tx.identities.entries()

    async def by_key(self, key_sha256: str) -> IdentityEntry | None:
        """Find the identity of a connection's key."""
        async with self._store.snapshot() as tx:
            return await tx.identities.by_key(key_sha256)

    async def _certify(
        self, *, name: str, roles: frozenset[Role], key: Key, ttl_ms: int, by: str
    ) -> IssuedIdentity:
        if self._keys.admin_ca is None:
            raise FailedPrecondition("this process does not hold the admin CA; it may live offline")
        ttl_ms = min(ttl_ms if ttl_ms > 0 else DEFAULT_TTL_MS, MAX_TTL_MS)
        async with self._store.transaction() as tx:
            entry = IdentityEntry(
                key_sha256=key_sha256(key),
                name=name,
                roles=roles,
                revoked=False,
                certificate_expires_ms=tx.now_ms + ttl_ms,
                issued_by=by,
            )
            if not await tx.identities.put(entry):
                raise AlreadyExists(
                    f"the name or key of {name!r} belongs to another identity, or was revoked",
                    kind="identity",
                    name=name,
                )
            chain = self._keys.admin_ca.issue_client(
                key, path=f"/identity/{name}", now_ms=tx.now_ms, ttl_ms=ttl_ms
            )
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation="identity.issue",
                    subject=name,
                    decision="done",
                    details={
                        "roles": ",".join(sorted(roles)),
                        "key_sha256": entry.key_sha256,
                        "expires_ms": entry.certificate_expires_ms,
                    },
                )
            )
        warnings = tuple(
            f"{name} {text}" for one, two, text in SEPARATED if one in roles and two in roles
        )
        return IssuedIdentity(certificate_chain=chain, entry=entry, warnings=warnings)


def key_sha256(key: Key) -> str:
    """Hex SHA-256 of a key's SubjectPublicKeyInfo."""
    return hashlib.sha256(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    ).hexdigest()


def _requested_key(request: bytes) -> Key:
    """The key of a PKCS#10 request that proves its possession."""
    if len(request) > MAX_REQUEST_BYTES:
        raise InvalidRequest("the certificate request is too long", field="certificate_request")
    try:
        decoded = x509.load_pem_x509_csr(request)
        valid, key = decoded.is_signature_valid, decoded.public_key()
    except (ValueError, TypeError) as error:
        raise InvalidRequest(
            f"not a PKCS#10 request in PEM: {error}", field="certificate_request"
        ) from error
    if not valid:
        raise InvalidRequest(
            "the request is not signed by its own key", field="certificate_request"
        )
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1"):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 3072:
        return key
    raise InvalidRequest(
        "use a P-256 or P-384 key, or RSA of 3072 bits", field="certificate_request"
    )
