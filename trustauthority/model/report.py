"""Signed statements: reports for relying parties, and seals by which the key role trusts a verdict."""

from collections.abc import Mapping
from dataclasses import dataclass

from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.identifiers import ClusterId, HostId

REPORT_TYPE = "ta-report+jwt"
"""``typ`` header of reports: a token of another type is never taken for one (N68)."""
SEAL_TYPE = "ta-verdict+jwt"
"""``typ`` header of verdict seals; they never leave the authority."""
EAT_PROFILE = "tag:trustauthority.dev,2026:report/v1"
ALGORITHMS = ("ES256", "ES384")
"""Accepted signature algorithms: an allow-list, nothing is negotiated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContext:
    """What a report states besides the verdict."""

    issuer: str
    audience: str
    node: str
    verdict_id: str
    challenge_sha256: str
    evidence_sha256: str
    ak_name: bytes
    tls_spki_sha256: str
    reset_count: int
    restart_count: int
    verifier_build: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report whose signature, type, audience and time were checked. Built in ``report.token`` only."""

    host_id: HostId
    cluster: ClusterId
    passed: bool
    verdict_id: str
    issued_at_ms: int
    expires_at_ms: int
    claims: Mapping[str, object]
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictSeal:
    """What the attest role signs for the key role: the verdict and the TPM state a key is sealed to.

    A database writer can change a status column; it can't make one of these.
    """

    verdict_id: str
    host_id: HostId
    cluster: ClusterId
    passed: bool
    warned: bool
    """It passed with warnings."""
    policy_epoch: int
    trust_epoch: int
    global_epoch: int
    attested_until_ms: int
    quote_received_ms: int
    """When the quote arrived, by the store's clock."""
    clock_ms: int
    """The TPM clock in that quote."""
    counters: bytes
    """resetCount, restartCount: 8 bytes big-endian."""
    storage_public: bytes
    """TPMT_PUBLIC of the enrolled storage parent."""
    sealed_pcrs: Mapping[HashAlgorithm, Mapping[int, bytes]]
    """The stable PCRs that a key is sealed to, as quoted."""
