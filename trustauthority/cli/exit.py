"""Exit codes, and which reason leads to which.

Scripts branch on these numbers, so they never change. Every reason of ``trustauthority.errors`` and
of ``client.reasons`` has a row; a test walks both.
"""

from enum import IntEnum

from trustauthority import errors
from trustauthority.client import reasons


class ExitCode(IntEnum):
    """What the number means."""

    YES = 0
    """Done, or the answer is yes."""
    NO = 1
    """The answer is no: not attested, move refused, baseline differs."""
    USAGE = 2
    """Asked wrongly: a bad flag, an invalid file."""
    NOT_FOUND = 3
    """No such thing."""
    DENIED = 4
    """Not allowed."""
    NO_ANSWER = 5
    """No answer now; trying again may help."""
    BUG = 70
    """A mistake in the software; an error id is printed."""
    INTERRUPTED = 130
    """Ctrl-C."""


CODES: dict[str, ExitCode] = {
    errors.TrustAuthorityError.reason: ExitCode.BUG,
    # asked wrongly
    errors.InvalidRequest.reason: ExitCode.USAGE,
    errors.MalformedEvidence.reason: ExitCode.USAGE,
    errors.AlgorithmUnsupported.reason: ExitCode.USAGE,
    errors.PolicyInvalid.reason: ExitCode.USAGE,
    errors.MalformedEscrow.reason: ExitCode.USAGE,
    errors.AlreadyExists.reason: ExitCode.USAGE,
    errors.InsecureFile.reason: ExitCode.USAGE,
    errors.ConfigurationInvalid.reason: ExitCode.USAGE,
    reasons.UNIMPLEMENTED: ExitCode.USAGE,
    reasons.RESOURCE_EXHAUSTED: ExitCode.USAGE,
    # no such thing
    errors.NotFound.reason: ExitCode.NOT_FOUND,
    # not allowed
    errors.EvidenceRejected.reason: ExitCode.DENIED,
    errors.QuoteSignatureInvalid.reason: ExitCode.DENIED,
    errors.NotAQuote.reason: ExitCode.DENIED,
    errors.ChallengeMismatch.reason: ExitCode.DENIED,
    errors.PcrSelectionRejected.reason: ExitCode.DENIED,
    errors.PcrDigestMismatch.reason: ExitCode.DENIED,
    errors.TpmClockRolledBack.reason: ExitCode.DENIED,
    errors.LogRejected.reason: ExitCode.DENIED,
    errors.EndorsementRejected.reason: ExitCode.DENIED,
    errors.ChainUntrusted.reason: ExitCode.DENIED,
    errors.EkCertificateRevoked.reason: ExitCode.DENIED,
    errors.ResidencyUnproven.reason: ExitCode.DENIED,
    errors.Unauthenticated.reason: ExitCode.DENIED,
    errors.OwnerSignatureInvalid.reason: ExitCode.DENIED,
    errors.RoleRequired.reason: ExitCode.DENIED,
    reasons.PERMISSION_DENIED: ExitCode.DENIED,
    reasons.AUTHORITY_UNVERIFIED: ExitCode.DENIED,
    # the answer is no
    errors.FailedPrecondition.reason: ExitCode.NO,
    errors.ReleaseRefused.reason: ExitCode.NO,
    errors.HostNotAttested.reason: ExitCode.NO,
    errors.QuoteTooOld.reason: ExitCode.NO_ANSWER,
    errors.HostNotAdmitted.reason: ExitCode.NO,
    errors.HostRevoked.reason: ExitCode.NO,
    errors.KeyNotPermitted.reason: ExitCode.NO,
    errors.GrantHeldElsewhere.reason: ExitCode.NO,
    errors.Fenced.reason: ExitCode.NO,
    errors.BreakGlassOver.reason: ExitCode.NO,
    errors.RollbackDetected.reason: ExitCode.NO,
    errors.MoveRefused.reason: ExitCode.NO,
    errors.SwitchBegun.reason: ExitCode.NO,
    errors.EscrowRejected.reason: ExitCode.NO,
    errors.ReportRejected.reason: ExitCode.NO,
    errors.CheckpointInvalid.reason: ExitCode.NO,
    # no answer now
    errors.ChallengeExpired.reason: ExitCode.NO_ANSWER,
    errors.ChallengeAlreadyUsed.reason: ExitCode.NO_ANSWER,
    errors.Conflict.reason: ExitCode.NO_ANSWER,
    errors.DependencyUnavailable.reason: ExitCode.NO_ANSWER,
    errors.KmsUnavailable.reason: ExitCode.NO_ANSWER,
    errors.StoreUnavailable.reason: ExitCode.NO_ANSWER,
    errors.RateLimited.reason: ExitCode.NO_ANSWER,
    reasons.UNAVAILABLE: ExitCode.NO_ANSWER,
    reasons.DEADLINE_EXCEEDED: ExitCode.NO_ANSWER,
    reasons.CANCELLED: ExitCode.NO_ANSWER,
}


def exit_code(reason: str) -> ExitCode:
    """The exit code of an ErrorInfo reason; one of a newer server is refused as «no»."""
    return CODES.get(reason, ExitCode.NO)


ADVICE: dict[str, str] = {
    reasons.UNAVAILABLE: "check the address with ta context show, that the authority runs there, and that "
    "it accepts your certificate",
    reasons.DEADLINE_EXCEEDED: "a change may have happened or not: look before you repeat it, "
    "or give it longer with --timeout",
    reasons.AUTHORITY_UNVERIFIED: "the server at this address is not the one whose CA is pinned "
    "in the context, or its certificate names another address; compare with ta context show",
    reasons.UNIMPLEMENTED: "the process at this address does not have that role, or is older "
    "than this ta; see ta status and ta context show",
    errors.Unauthenticated.reason: "your certificate is not accepted here: see ta context show; "
    "an expired one is replaced by ta identity renew before it ends, or ta identity issue after",
    errors.RoleRequired.reason: "see ta identity list for who holds that role",
    errors.Conflict.reason: "someone changed it meanwhile: look again, then repeat",
    errors.HostNotAttested.reason: "ta host explain HOST says why",
    errors.HostNotAdmitted.reason: "ta host admit HOST makes it one of ours",
    errors.HostRevoked.reason: "ta host reinstate HOST undoes a revocation",
    errors.SwitchBegun.reason: "let it finish, then move the VM back with ta vm migrate",
    errors.KmsUnavailable.reason: "nothing was lost: repeat the command when the KMS is back (ta status)",
    errors.StoreUnavailable.reason: "whether a change happened is unknown: look, then repeat (ta status)",
    errors.RollbackDetected.reason: "the authority's database is older than what it showed before: "
    "its operators must act before keys flow again",
    errors.RateLimited.reason: "wait a little, then repeat",
    errors.CheckpointInvalid.reason: "keep the output as proof and tell the auditors",
}
"""What to do, for reasons whose message can't say it because the server doesn't know this tool."""
