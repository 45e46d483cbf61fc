"""The whole error hierarchy, in terms of who must do something about it.

An error here is an *impossible request*; a bad verdict is a value (``model.verdict``). Every class
has a ``reason`` that is never renamed, a message that is safe to show, and metadata that repeats
each variable of the message. ``rpc.errors`` maps classes to gRPC codes and ``google.rpc.ErrorInfo``
(AIP-193); ``cli.exit`` maps reasons to exit codes; a test walks this hierarchy for completeness.
"""

from typing import ClassVar

DOMAIN = "trustauthority.dev"


class TrustAuthorityError(Exception):
    """The root: a request that can't be served, with a stable reason and what to do about it."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, /, **metadata: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}


# --- the caller asked wrongly ----------------------------------------------------------------


class InvalidRequest(TrustAuthorityError):
    """A field is missing, too long, of the wrong size or grammar. Metadata: ``field``."""

    reason = "INVALID_REQUEST"


class MalformedEvidence(InvalidRequest):
    """Bytes from a host do not decode. Metadata: ``part`` (what was read) and ``offset`` (bytes)."""

    reason = "EVIDENCE_MALFORMED"

    def __init__(self, message: str, /, *, part: str, offset: int) -> None:
        super().__init__(f"{part} at byte {offset}: {message}", part=part, offset=offset)
        self.part = part
        self.offset = offset


class AlgorithmUnsupported(InvalidRequest):
    """A key, hash or scheme outside the allow-list. Metadata: ``algorithm``."""

    reason = "ALGORITHM_UNSUPPORTED"


class PolicyInvalid(InvalidRequest):
    """A policy or baseline document has wrong fields. Metadata: ``fields``."""

    reason = "POLICY_INVALID"


class MalformedEscrow(InvalidRequest):
    """Not an escrowed key, escrow key file or export of one that is known here."""

    reason = "ESCROW_MALFORMED"


class CheckpointInvalid(InvalidRequest):
    """A signed audit checkpoint or a Merkle proof does not hold. Metadata: ``size`` where known."""

    reason = "CHECKPOINT_INVALID"


# --- evidence that proves nothing (and therefore changes nothing) ----------------------------


class EvidenceRejected(TrustAuthorityError):
    """Evidence that is not shown to come from the enrolled TPM for this challenge."""

    reason = "EVIDENCE_REJECTED"


class QuoteSignatureInvalid(EvidenceRejected):
    """The signature does not verify under the enrolled AK, or its scheme is not the AK's."""

    reason = "QUOTE_SIGNATURE_INVALID"


class NotAQuote(EvidenceRejected):
    """A structure with wrong magic or of another attestation type."""

    reason = "NOT_A_QUOTE"


class PcrSelectionRejected(EvidenceRejected):
    """The quote does not cover exactly the PCRs and banks that were asked for."""

    reason = "PCR_SELECTION_REJECTED"


class PcrDigestMismatch(EvidenceRejected):
    """The PCR values that came with the quote are not the ones the TPM signed."""

    reason = "PCR_DIGEST_MISMATCH"


class ChallengeMismatch(EvidenceRejected):
    """qualifyingData answers another challenge, host, key or purpose (a relay)."""

    reason = "CHALLENGE_MISMATCH"


class ChallengeExpired(EvidenceRejected):
    """The challenge is too old, from the future, or of a retired key. Ask for a new one."""

    reason = "CHALLENGE_EXPIRED"


class ChallengeAlreadyUsed(EvidenceRejected):
    """A verdict was already recorded for this challenge."""

    reason = "CHALLENGE_ALREADY_USED"


class TpmClockRolledBack(EvidenceRejected):
    """(resetCount, restartCount, clock) did not move forward: a restored or cloned TPM state."""

    reason = "TPM_CLOCK_ROLLED_BACK"


class LogRejected(EvidenceRejected):
    """A log delta leaves a gap, overlaps, or belongs to another boot. Metadata: ``expectedOffset``."""

    reason = "LOG_REJECTED"


# --- a TPM or key that may not be enrolled ---------------------------------------------------


class EndorsementRejected(TrustAuthorityError):
    """The EK certificate or its chain is not acceptable."""

    reason = "ENDORSEMENT_REJECTED"


class ChainUntrusted(EndorsementRejected):
    """No chain from the EK certificate to an anchor of this cluster."""

    reason = "ENDORSEMENT_UNTRUSTED"


class EkCertificateRevoked(EndorsementRejected):
    """The EK certificate or one of its CAs is revoked or on the deny list."""

    reason = "ENDORSEMENT_REVOKED"


class ResidencyUnproven(EndorsementRejected):
    """A key is not shown to live in the TPM of this EK, or has a forbidden attribute."""

    reason = "RESIDENCY_UNPROVEN"


# --- state -----------------------------------------------------------------------------------


class NotFound(TrustAuthorityError):
    """No such object. Metadata: ``kind``, ``name``."""

    reason = "NOT_FOUND"


class AlreadyExists(TrustAuthorityError):
    """The name or identity is taken. Metadata: ``kind``, ``name``."""

    reason = "ALREADY_EXISTS"


class Conflict(TrustAuthorityError):
    """The object changed since it was read; read it again and repeat."""

    reason = "CONFLICT"


class FailedPrecondition(TrustAuthorityError):
    """The object is not in a state that allows this operation."""

    reason = "FAILED_PRECONDITION"


# --- the answer is no ------------------------------------------------------------------------


class Unauthenticated(TrustAuthorityError):
    """The caller showed no certificate that this listener accepts."""

    reason = "UNAUTHENTICATED"


class RoleRequired(TrustAuthorityError):
    """The caller's registered key does not hold a role of this operation. Metadata: ``role``."""

    reason = "ROLE_REQUIRED"


class ReleaseRefused(TrustAuthorityError):
    """A key is not released; the reason says which predicate failed."""

    reason = "RELEASE_REFUSED"


class HostNotAttested(ReleaseRefused):
    """The host's standing is FAILED or UNKNOWN."""

    reason = "HOST_NOT_ATTESTED"


class QuoteTooOld(ReleaseRefused):
    """The newest quote does not tell the TPM's clock well enough to bound a key: attest, then repeat."""

    reason = "QUOTE_TOO_OLD"


class HostNotAdmitted(ReleaseRefused):
    """A genuine TPM, but not shown to be one of our hosts: it may be attested, never hold a key."""

    reason = "HOST_NOT_ADMITTED"


class HostRevoked(ReleaseRefused):
    """The host, or every host, was revoked."""

    reason = "HOST_REVOKED"


class KeyNotPermitted(ReleaseRefused):
    """No reason to give this VM to this host, or no such VM: the two look alike to a host."""

    reason = "KEY_NOT_PERMITTED"


class GrantHeldElsewhere(ReleaseRefused):
    """Another host holds the grant, or its fence has not passed. Metadata: ``retryAfterMs``."""

    reason = "GRANT_HELD_ELSEWHERE"


class Fenced(ReleaseRefused):
    """The grant epoch is not the current one: this owner was replaced."""

    reason = "FENCED"


class BreakGlassOver(ReleaseRefused):
    """The break-glass expired, was closed or used, or is for another VM or host."""

    reason = "BREAK_GLASS_OVER"


class OwnerSignatureInvalid(TrustAuthorityError):
    """The VM's owner did not sign this version of its release policy."""

    reason = "OWNER_SIGNATURE_INVALID"


class RollbackDetected(ReleaseRefused):
    """A caller showed a signed audit checkpoint that our database does not contain."""

    reason = "ROLLBACK_DETECTED"


class MoveRefused(TrustAuthorityError):
    """A step of a migration is not allowed now."""

    reason = "MOVE_REFUSED"


class SwitchBegun(MoveRefused):
    """A move can't be stopped any more: the VM has left its source. Metadata: ``order``."""

    reason = "SWITCH_BEGUN"


class EscrowRejected(TrustAuthorityError):
    """An escrowed key does not open: another private key, another VM, or changed. Metadata: ``vm``."""

    reason = "ESCROW_REJECTED"


class ReportRejected(TrustAuthorityError):
    """A report token does not verify, expired, or is meant for someone else."""

    reason = "REPORT_REJECTED"


# --- no answer now ---------------------------------------------------------------------------


class DependencyUnavailable(TrustAuthorityError):
    """Something this answer needs does not answer. Retry later."""

    reason = "DEPENDENCY_UNAVAILABLE"


class KmsUnavailable(DependencyUnavailable):
    """The KMS does not answer, or answers what can't be used. No key left; nothing was lost."""

    reason = "KMS_UNAVAILABLE"


class StoreUnavailable(DependencyUnavailable):
    """The database does not answer or has no room. The outcome of a write is unknown."""

    reason = "STORE_UNAVAILABLE"


class RateLimited(TrustAuthorityError):
    """Too many requests from this peer. Metadata: ``retryAfterMs``."""

    reason = "RATE_LIMITED"


# --- operation -------------------------------------------------------------------------------


class InsecureFile(TrustAuthorityError):
    """A file with a secret or a configuration can be read or written by others. Metadata: ``path``."""

    reason = "INSECURE_FILE"


class ConfigurationInvalid(TrustAuthorityError):
    """The configuration has problems; all of them are in the message."""

    reason = "CONFIGURATION_INVALID"
