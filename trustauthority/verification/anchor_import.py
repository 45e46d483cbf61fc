"""What would be trusted if these files were imported as anchors? An answer to read before saying yes.

Stage: verification. Trusts nothing: the files may be a folder, a bundle, or the extracted folders of a
vendor collection, and contain anything. Guarantees that only self-signed CAs which may endorse EKs are
proposed as anchors, that other CAs are material for chains only, and that every certificate and every
file that is not taken says why. Decides nothing: the operator does (I-E).
Source: pitfalls 24, 27-29.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import groupby

from cryptography.exceptions import InvalidSignature

from trustauthority.codec.x509 import decode_certificates
from trustauthority.codec.x509_keys import certificate_key, check_certificate_signature
from trustauthority.errors import AlgorithmUnsupported, EndorsementRejected, MalformedEvidence
from trustauthority.model.certificate import Certificate
from trustauthority.model.endorsement import CaAnchor, EndorsementPolicy, EndorsementRule
from trustauthority.verification.endorsement_profile import (
    EK_CERTIFICATE,
    check_authority_certificate,
    refused,
)

_TEST_AUTHORITY = re.compile(r"swtpm|snake ?oil|dummy|\btest\b", re.IGNORECASE)
_COLLECTION_FOLDERS = frozenset({"rootca", "intermediateca", "root", "intermediate"})


class ImportUse(StrEnum):
    """What an import would do with a certificate."""

    ANCHOR = "anchor"
    INTERMEDIATE = "intermediate"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportCandidate:
    """One certificate, or one file that holds none, and what would become of it."""

    file: str
    vendor: str
    use: ImportUse
    certificate: Certificate | None
    why: str
    """Empty when it would be an anchor without reservations."""
    rule: EndorsementRule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorImport:
    """What would be trusted of one vendor."""

    vendor: str
    anchors: tuple[CaAnchor, ...]
    intermediates: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorImport:
    """The whole answer; ``candidates`` are in order of the files, without duplicates."""

    candidates: tuple[ImportCandidate, ...]

    @property
    def vendors(self) -> tuple[VendorImport, ...]:
        """What would be taken, by vendor, in alphabetical order."""
        taken = [one for one in self.candidates if one.use is not ImportUse.NOTHING]
        return tuple(
            _vendor(name, tuple(group))
            for name, group in groupby(
                sorted(taken, key=lambda one: one.vendor), key=lambda one: one.vendor
            )
        )

    @property
    def refused(self) -> tuple[ImportCandidate, ...]:
        """What would not be taken, with the reason."""
        return tuple(one for one in self.candidates if one.use is ImportUse.NOTHING)


def plan_anchor_import(
    files: Iterable[tuple[str, bytes]],
    *,
    now: datetime,
    policy: EndorsementPolicy,
    allow_test_authorities: bool = False,
) -> AnchorImport:
    """Say what importing these files would trust.

    Args:
        files: names (relative paths with ``/``) and contents.
        now: the time to judge validity by.
        policy: what is relaxed.
        allow_test_authorities: take CAs of software TPMs too; never in production (pitfall 29).
    """
    candidates: list[ImportCandidate] = []
    seen: set[bytes] = set()
    for name, data in files:
        try:
            certificates = decode_certificates(data)
        except MalformedEvidence as error:
            candidates.append(_nothing(name, None, error.message))
            continue
        for certificate in certificates:
            if certificate.fingerprint not in seen:
                seen.add(certificate.fingerprint)
                candidates.append(
                    _candidate(name, certificate, now, policy, allow_test=allow_test_authorities)
                )
    return AnchorImport(candidates=tuple(candidates))


def _vendor(name: str, candidates: tuple[ImportCandidate, ...]) -> VendorImport:
    def of(use: ImportUse) -> tuple[Certificate, ...]:
        return tuple(
            one.certificate for one in candidates if one.use is use and one.certificate is not None
        )

    return VendorImport(
        vendor=name,
        anchors=tuple(CaAnchor(certificate=one) for one in of(ImportUse.ANCHOR)),
        intermediates=of(ImportUse.INTERMEDIATE),
    )


def _candidate(
    name: str,
    certificate: Certificate,
    now: datetime,
    policy: EndorsementPolicy,
    *,
    allow_test: bool,
) -> ImportCandidate:
    try:
        # (1) A CA, in its time, with a strong key, that may issue EK certificates.
        check_authority_certificate(certificate, now, policy, purposes=frozenset({EK_CERTIFICATE}))
        # (2) Not one that anybody can make.
        if _TEST_AUTHORITY.search(certificate.subject.text) and not allow_test:
            return _nothing(name, certificate, "a CA of software TPMs or for tests")
        # (3) An anchor signs itself, as proof that the file is whole.
        if not certificate.is_self_issued:
            return _taken(name, certificate, ImportUse.INTERMEDIATE, "not self-signed")
        _check_own_signature(certificate)
    except EndorsementRejected as error:
        rule = EndorsementRule(error.metadata["rule"])
        return _nothing(name, certificate, error.message, rule)
    return _taken(name, certificate, ImportUse.ANCHOR, "")


def _check_own_signature(certificate: Certificate) -> None:
    """SHA-1 will do here: an anchor is trusted as it stands, not for its own signature."""
    try:
        check_certificate_signature(
            certificate_key(certificate.public_key_info),
            certificate.to_be_signed,
            certificate.signature,
            certificate.signature_algorithm,
        )
    except InvalidSignature:
        raise refused(
            EndorsementRule.SIGNATURE, certificate, "its own signature is wrong"
        ) from None
    except (AlgorithmUnsupported, MalformedEvidence) as error:
        raise refused(EndorsementRule.ALGORITHM, certificate, error.message) from error


def _taken(name: str, certificate: Certificate, use: ImportUse, why: str) -> ImportCandidate:
    return ImportCandidate(
        file=name, vendor=_vendor_of(name, certificate), use=use, certificate=certificate, why=why
    )


def _nothing(
    name: str, certificate: Certificate | None, why: str, rule: EndorsementRule | None = None
) -> ImportCandidate:
    return ImportCandidate(
        file=name,
        vendor=_vendor_of(name, certificate),
        use=ImportUse.NOTHING,
        certificate=certificate,
        why=why,
        rule=rule,
    )


def _vendor_of(name: str, certificate: Certificate | None) -> str:
    """The folder above RootCA or IntermediateCA (as in TrustedTpm.cab), or the organisation."""
    folders = name.split("/")[:-1]
    if len(folders) > 1 and folders[-1].lower() in _COLLECTION_FOLDERS:
        return folders[-2]
    if certificate is None:
        return "unknown"
    return certificate.subject.organization or certificate.subject.text
