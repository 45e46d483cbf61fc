"""``ta evidence endorsement``: are these certificates of genuine TPMs, and if not, why not?

Works offline on files and trusts only the anchors that the caller names. Exit status: 0 all genuine, 1
one is refused, 2 one is malformed or unreadable. One process judges any number of certificates.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cryptography.hazmat.primitives.asymmetric import rsa
from cyclopts import Parameter
from rich.console import Console

from trustauthority.cli.certificate_files import (
    read_authorities,
    read_bytes,
    read_revocation_lists,
)
from trustauthority.cli.input_files import not_judged
from trustauthority.codec.efi_text import printable
from trustauthority.codec.x509 import decode_certificate
from trustauthority.codec.x509_keys import certificate_key
from trustauthority.errors import InvalidRequest, MalformedEvidence, TrustAuthorityError
from trustauthority.model.certificate import Certificate
from trustauthority.model.endorsement import (
    CaAnchor,
    CertificateChain,
    EndorsementPolicy,
    Revocations,
)
from trustauthority.verification.endorsement import verify_certificate
from trustauthority.verification.endorsement_chain import AnchorSet, CertificatePool
from trustauthority.verification.endorsement_profile import role_of

EXIT_GENUINE = 0
EXIT_REFUSED = 1
EXIT_MALFORMED = 2

_RESULTS = ("genuine", "refused", "malformed")
Relaxation = Literal["expired-ek", "expired-ca", "sha1", "sha1-ek"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """What all certificates of one call are judged by."""

    anchors: AnchorSet
    intermediates: CertificatePool
    revocations: Revocations
    policy: EndorsementPolicy
    now: datetime
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateJudgement:
    """What was found about one file; the JSON output is made of its fields."""

    file: str
    certificate: Certificate | None = None
    chain: CertificateChain | None = None
    error: TrustAuthorityError | None = None

    @property
    def exit_code(self) -> int:
        """0 genuine, 1 refused, 2 malformed."""
        if self.error is None:
            return EXIT_GENUINE
        return EXIT_MALFORMED if isinstance(self.error, InvalidRequest) else EXIT_REFUSED


def judge_file(path: Path, grounds: Grounds) -> CertificateJudgement:
    """Judge one file; what refuses it is in ``error``, never raised."""
    certificate: Certificate | None = None
    try:
        certificate = decode_certificate(read_bytes(path))
        chain = verify_certificate(
            certificate,
            intermediates=grounds.intermediates,
            anchors=grounds.anchors,
            now=grounds.now,
            policy=grounds.policy,
            revocations=grounds.revocations,
        )
    except TrustAuthorityError as error:
        return CertificateJudgement(file=str(path), certificate=certificate, error=error)
    except Exception as error:  # noqa: BLE001 - a defect of ours is a refusal, never a traceback
        return CertificateJudgement(
            file=str(path), certificate=certificate, error=not_judged(error)
        )
    return CertificateJudgement(file=str(path), certificate=certificate, chain=chain)


# --- output ------------------------------------------------------------------------------------


def describe(judgement: CertificateJudgement) -> dict[str, Any]:
    """The JSON document of one file (docs/reference/evidence-endorsement.schema.json)."""
    error = judgement.error
    document: dict[str, Any] = {
        "file": judgement.file,
        "result": _RESULTS[judgement.exit_code],
        "reason": error.reason if error else None,
        "rule": error.metadata.get("rule") if error else None,
        "message": error.message if error else None,
    }
    if isinstance(error, MalformedEvidence):
        document |= {"part": error.part, "offset": error.offset}
    certificate, chain = judgement.certificate, judgement.chain
    return document | {
        "role": role_of(certificate) if certificate else None,
        "certificate": _describe_certificate(certificate) if certificate else None,
        "tpm": _describe_tpm(certificate) if certificate else None,
        "chain": [_describe_link(one) for one in chain.certificates] if chain else [],
        "anchor": chain.anchor_id if chain else None,
    }


def _describe_link(certificate: Certificate) -> dict[str, Any]:
    return {
        "subject": certificate.subject.text,
        "issuer": certificate.issuer.text,
        "serial": certificate.serial_text,
        "sha256": certificate.fingerprint.hex(),
    }


def _describe_certificate(certificate: Certificate) -> dict[str, Any]:
    purposes = certificate.extended_key_usage
    return _describe_link(certificate) | {
        "notBefore": _moment(certificate.not_before),
        "notAfter": _moment(certificate.not_after),
        "signatureAlgorithm": certificate.signature_algorithm.object_identifier,
        "key": _describe_key(certificate),
        "keyUsage": sorted(certificate.key_usage or ()),
        "extendedKeyUsage": None if purposes is None else sorted(purposes),
        "criticalExtensions": [
            one.object_identifier for one in certificate.extensions if one.critical
        ],
    }


def _describe_key(certificate: Certificate) -> dict[str, Any]:
    algorithm = certificate.public_key_info.algorithm
    try:
        key = certificate_key(certificate.public_key_info)
    except InvalidRequest:
        return {"type": "unsupported", "algorithm": algorithm, "bits": None, "curve": None}
    if isinstance(key, rsa.RSAPublicKey):
        return {"type": "rsa", "algorithm": algorithm, "bits": key.key_size, "curve": None}
    return {"type": "ecc", "algorithm": algorithm, "bits": key.key_size, "curve": key.curve.name}


def _describe_tpm(certificate: Certificate) -> dict[str, Any] | None:
    tpm = certificate.tpm
    if tpm.manufacturer is None:
        return None
    return {
        "manufacturer": tpm.manufacturer,
        "manufacturerName": tpm.manufacturer_name,
        "model": tpm.model,
        "version": tpm.version,
    }


def _moment(when: datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")


def _print_table(judgement: CertificateJudgement, console: Console) -> None:
    document = describe(judgement)
    role = f" {document['role']}" if document["role"] else ""
    print_line(console, f"{document['result']:9} {printable(judgement.file)}{role}")
    if judgement.error:
        rule = f" {document['rule']}" if document["rule"] else ""
        print_line(console, f"  why      {document['reason']}{rule}: {document['message']}")
    tpm = document["tpm"]
    if tpm:
        words = " ".join(
            str(one) for one in (tpm["manufacturerName"], tpm["model"], tpm["version"])
        )
        print_line(console, f"  TPM      {words}")
    for link in document["chain"]:
        print_line(console, f"  chain    {link['subject'] or 'serial ' + link['serial']}")


def print_line(console: Console, text: str) -> None:
    """Print text as it stands: nothing in a certificate is markup."""
    console.print(text, markup=False, highlight=False)


def endorsement(
    *certificates: Path,
    anchors: tuple[Path, ...],
    intermediates: tuple[Path, ...] = (),
    crl: tuple[Path, ...] = (),
    allow: tuple[Relaxation, ...] = (),
    at: datetime | None = None,
    output: Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"])] = "table",
) -> int:
    """Judge certificates of EKs, AKs and TPM vendor CAs from files.

    Exit status: 0 all genuine, 1 one refused with a reason code, 2 one malformed with part and offset.
    JSON is one object for one file and a list for several.

    Args:
        certificates: DER, PEM, or the content of an NV index with its header and padding.
        anchors: CA certificates to trust: a bundle (PEM, DER in a row, PKCS #7), or a folder.
        intermediates: CA certificates to build chains from: bundles or folders, or a chain from NV.
        crl: Revocation lists, DER or PEM: files or folders.
        allow: What is refused by default: certificates past their end, and SHA-1 over CAs or over EKs.
        at: Time to judge by, RFC 3339; default is now.
        output: Format of the answer.
    """
    console, narration = Console(soft_wrap=True), Console(soft_wrap=True, stderr=True)
    try:
        if not certificates:
            raise InvalidRequest("name at least one certificate", field="certificates")
        grounds = _read_grounds(anchors, intermediates, crl, allow, at)
    except TrustAuthorityError as error:
        judgements = [CertificateJudgement(file="", error=error)]
    else:
        for note in grounds.notes:
            print_line(narration, printable(note))
        judgements = [judge_file(path, grounds) for path in certificates]
    if output == "json":
        documents = [describe(one) for one in judgements]
        text = json.dumps(documents if len(documents) > 1 else documents[0], indent=2)
        console.out(text, highlight=False)
    else:
        for judgement in judgements:
            _print_table(judgement, console)
    return max(one.exit_code for one in judgements)


def _read_grounds(
    anchors: tuple[Path, ...],
    intermediates: tuple[Path, ...],
    crl: tuple[Path, ...],
    allow: tuple[Relaxation, ...],
    at: datetime | None,
) -> Grounds:
    notes: list[str] = []
    trusted = read_authorities(anchors, notes)
    if not trusted:
        raise InvalidRequest("--anchors: no CA certificate in there", field="anchors")
    now = at or datetime.now(UTC)
    return Grounds(
        anchors=AnchorSet(CaAnchor(certificate=one) for one in trusted),
        intermediates=CertificatePool(read_authorities(intermediates, notes)),
        revocations=Revocations(lists=read_revocation_lists(crl)),
        policy=EndorsementPolicy(
            ignore_ek_not_after="expired-ek" in allow,
            ignore_ca_not_after="expired-ca" in allow,
            allow_sha1_signatures="sha1" in allow,
            allow_sha1_leaf="sha1-ek" in allow,
        ),
        now=now if now.tzinfo else now.replace(tzinfo=UTC),
        notes=tuple(notes),
    )


def register(app: cyclopts.App) -> None:
    """Add ``endorsement`` to the commands of ``ta evidence``."""
    app.command(endorsement, name="endorsement")
