"""From a certificate to an anchor: candidates by name, decided by signature.

Stage: verification. Trusts the anchors only; every other certificate of the pool is material. Guarantees
on return that each certificate's original bytes are signed by the next one's key, that each issuer may
issue what it issued, and that the last one is an anchor. Bounded: at most 8 certificates and 64
signatures. Does not fetch anything. Source: RFC 5280 section 6.1; pitfalls 25, 27, 28; N20.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature

from trustauthority.codec.x509_keys import (
    certificate_key,
    check_certificate_signature,
    uses_sha1,
)
from trustauthority.errors import (
    AlgorithmUnsupported,
    ChainUntrusted,
    EndorsementRejected,
    MalformedEvidence,
)
from trustauthority.model.certificate import CanonicalName, Certificate
from trustauthority.model.endorsement import (
    MAX_CHAIN,
    Anchor,
    CaAnchor,
    EkHashAnchor,
    EndorsementPolicy,
    EndorsementRule,
    Revocations,
)
from trustauthority.verification.endorsement_profile import check_authority_certificate, refused
from trustauthority.verification.revocation import check_revocation

MAX_SIGNATURE_CHECKS: Final = 64
"""Per certificate in question; the pool has at most 3 CAs of one name."""


class CertificatePool:
    """CA certificates by name, made once and shared; being in it is no reason to be trusted."""

    __slots__ = ("_by_subject",)

    def __init__(self, certificates: Iterable[Certificate] = ()) -> None:
        by_subject: dict[CanonicalName, dict[bytes, Certificate]] = {}
        for certificate in certificates:
            named = by_subject.setdefault(certificate.subject.canonical, {})
            named.setdefault(certificate.fingerprint, certificate)
        self._by_subject: Mapping[CanonicalName, tuple[Certificate, ...]] = MappingProxyType(
            {name: tuple(found.values()) for name, found in by_subject.items()}
        )

    def issuers_of(self, certificate: Certificate) -> tuple[Certificate, ...]:
        """Certificates that carry the issuer's name, those with the right key identifier first."""
        wanted = certificate.authority_key_identifier
        identifier = None if wanted is None else wanted.key_identifier
        found = self._by_subject.get(certificate.issuer.canonical, ())
        return tuple(sorted(found, key=lambda one: one.subject_key_identifier != identifier))

    def __len__(self) -> int:
        return sum(len(found) for found in self._by_subject.values())


class AnchorSet:
    """The anchors of a cluster, made once and shared."""

    __slots__ = ("_authorities", "_ek_hashes", "pool")

    def __init__(self, anchors: Iterable[Anchor] = ()) -> None:
        together = tuple(anchors)
        self._authorities = MappingProxyType(
            {one.certificate.fingerprint: one for one in together if isinstance(one, CaAnchor)}
        )
        self._ek_hashes = MappingProxyType(
            {one.sha256: one for one in together if isinstance(one, EkHashAnchor)}
        )
        self.pool = CertificatePool(one.certificate for one in self._authorities.values())

    def authority(self, certificate: Certificate) -> CaAnchor | None:
        """The anchor that is this very certificate, or None."""
        return self._authorities.get(certificate.fingerprint)

    def single(self, ek_sha256: bytes) -> EkHashAnchor | None:
        """The anchor of one TPM, by the SHA-256 of its EK's TPMT_PUBLIC, or None."""
        return self._ek_hashes.get(ek_sha256)

    def __len__(self) -> int:
        return len(self._authorities) + len(self._ek_hashes)


@dataclass(slots=True, kw_only=True)
class ChainSearch:
    """One search for a chain; not shared, as it counts what it spends."""

    intermediates: CertificatePool
    anchors: AnchorSet
    now: datetime
    policy: EndorsementPolicy
    revocations: Revocations
    purposes: frozenset[str] | None
    """Extended key usages that the CAs must allow; None: any."""
    checks_left: int = MAX_SIGNATURE_CHECKS
    refusal: EndorsementRejected | None = field(default=None)
    """The most telling reason why no chain was found so far."""

    def find(self, leaf: Certificate) -> tuple[tuple[Certificate, ...], CaAnchor]:
        """The chain from ``leaf`` to the first anchor found, and that anchor.

        Raises:
            ChainUntrusted: there is none.
            EndorsementRejected: there would be one, but for a rule that a CA in it breaks.
            EkCertificateRevoked: there would be one, but for a revocation.
        """
        found = self._extend((leaf,))
        if found is None:
            raise self.refusal or refused(
                EndorsementRule.NO_ISSUER, leaf, "no chain to an anchor", kind=ChainUntrusted
            )
        return found

    def _extend(
        self, chain: tuple[Certificate, ...]
    ) -> tuple[tuple[Certificate, ...], CaAnchor] | None:
        """Depth first; the depth is bounded by MAX_CHAIN."""
        last = chain[-1]
        anchor = self.anchors.authority(last)
        if anchor is not None and last.is_authority:
            return chain, anchor
        if len(chain) == MAX_CHAIN:
            self._note(EndorsementRule.CHAIN_LENGTH, last, f"more than {MAX_CHAIN} certificates")
            return None
        candidates = self._candidates(last, chain)
        if not candidates:
            wanted = last.issuer.text
            self._note(EndorsementRule.NO_ISSUER, last, f"no certificate of {wanted!r} is known")
        for issuer in candidates:
            try:
                self._check_link(last, issuer, chain)
            except EndorsementRejected as error:
                self._remember(error)
                continue
            found = self._extend((*chain, issuer))
            if found is not None:
                return found
        return None

    def _candidates(self, last: Certificate, chain: tuple[Certificate, ...]) -> list[Certificate]:
        """Issuers by name, anchors first, without those that are in the chain already."""
        seen = {one.fingerprint for one in chain}
        found: dict[bytes, Certificate] = {}
        for issuer in (*self.anchors.pool.issuers_of(last), *self.intermediates.issuers_of(last)):
            if issuer.fingerprint not in seen:
                found.setdefault(issuer.fingerprint, issuer)
        return list(found.values())

    def _check_link(
        self, last: Certificate, issuer: Certificate, chain: tuple[Certificate, ...]
    ) -> None:
        # (1) The issuer's key signed the original bytes.
        self._check_signature(last, issuer, is_leaf=len(chain) == 1)
        # (2) The issuer may issue this.
        below = sum(1 for one in chain[1:] if not one.is_self_issued)
        if chain[0].is_authority and not chain[0].is_self_issued:
            below += 1
        check_authority_certificate(
            issuer, self.now, self.policy, purposes=self.purposes, authorities_below=below
        )
        # (3) Nobody took it back: the issuer says so of the certificate, we of the issuer.
        check_revocation(last, issuer, self.now, self.policy, self.revocations)

    def _check_signature(self, last: Certificate, issuer: Certificate, *, is_leaf: bool) -> None:
        if self.checks_left == 0:
            raise refused(
                EndorsementRule.CHAIN_BUDGET, last, "too many candidates", kind=ChainUntrusted
            )
        self.checks_left -= 1
        algorithm = last.signature_algorithm
        of_ca = last.is_authority or not is_leaf
        policy = self.policy
        sha1_allowed = policy.allow_sha1_signatures if of_ca else policy.allow_sha1_leaf
        try:
            if uses_sha1(algorithm) and not sha1_allowed:
                raise refused(EndorsementRule.SHA1, last, "is signed with SHA-1")
            key = certificate_key(issuer.public_key_info)
            check_certificate_signature(key, last.to_be_signed, last.signature, algorithm)
        except InvalidSignature:
            raise refused(
                EndorsementRule.SIGNATURE,
                last,
                f"is not signed by the key of {issuer.label!r}",
                kind=ChainUntrusted,
            ) from None
        except (AlgorithmUnsupported, MalformedEvidence) as error:
            raise refused(
                EndorsementRule.ALGORITHM, last, error.message, kind=ChainUntrusted
            ) from error

    def _note(self, rule: EndorsementRule, certificate: Certificate, message: str) -> None:
        self._remember(refused(rule, certificate, message, kind=ChainUntrusted))

    def _remember(self, error: EndorsementRejected) -> None:
        """A broken rule tells more than a missing issuer; a first answer more than a later one."""
        if self.refusal is None or (
            isinstance(self.refusal, ChainUntrusted) and not isinstance(error, ChainUntrusted)
        ):
            self.refusal = error
