"""Seals: verdicts signed by the attest role, checked by the key role before each release.

What it guarantees: the TPM state that a key is sealed to was signed by the attest role and belongs
to the very verdict that the host's row names. Writing a status column releases nothing (T14).
"""

from typing import Any

from joserfc.jwk import ECKey, KeySet

from trustauthority.errors import HostNotAttested, ReportRejected
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.identifiers import ClusterId, HostId
from trustauthority.model.report import SEAL_TYPE, VerdictSeal
from trustauthority.report.token import read_token, sign_token


def sign_seal(seal: VerdictSeal, key: ECKey) -> str:
    """Sign a seal."""
    claims = {
        "verdict": seal.verdict_id,
        "host": seal.host_id,
        "cluster": seal.cluster,
        "passed": seal.passed,
        "warned": seal.warned,
        "policyEpoch": seal.policy_epoch,
        "trustEpoch": seal.trust_epoch,
        "globalEpoch": seal.global_epoch,
        "attestedUntilMs": seal.attested_until_ms,
        "quoteReceivedMs": seal.quote_received_ms,
        "clock": str(seal.clock_ms),
        "counters": seal.counters.hex(),
        "storagePublic": seal.storage_public.hex(),
        "sealedPcrs": {
            str(bank): {str(index): value.hex() for index, value in values.items()}
            for bank, values in seal.sealed_pcrs.items()
        },
    }
    return sign_token(claims, token_type=SEAL_TYPE, key=key)


def open_seal(
    token: str, *, keys: KeySet, host: HostId, verdict_id: str, may_have_failed: bool = False
) -> VerdictSeal:
    """Check the seal of the verdict that a host's row names.

    Args:
        token: the seal.
        keys: the attest role's public keys.
        host: whose verdict it must be.
        verdict_id: which one.
        may_have_failed: accept a FAILED verdict: for a break-glass, which needs the quote in it.

    Raises:
        HostNotAttested: not signed by the attest role, of another host or verdict, or not passed.
    """
    try:
        claims = read_token(token, token_type=SEAL_TYPE, keys=keys)
        seal = _decode(claims)
    except (ReportRejected, KeyError, ValueError, TypeError, AttributeError) as error:
        raise HostNotAttested("the host's verdict does not carry a valid seal") from error
    if seal.host_id != host or seal.verdict_id != verdict_id:
        raise HostNotAttested("the seal is of another host or verdict, or not of a passed one")
    if not seal.passed and not may_have_failed:
        raise HostNotAttested("the seal is of another host or verdict, or not of a passed one")
    return seal


def _decode(claims: dict[str, Any]) -> VerdictSeal:
    return VerdictSeal(
        verdict_id=claims["verdict"],
        host_id=HostId(claims["host"]),
        cluster=ClusterId(claims["cluster"]),
        passed=claims["passed"] is True,
        warned=claims["warned"] is not False,
        policy_epoch=int(claims["policyEpoch"]),
        trust_epoch=int(claims["trustEpoch"]),
        global_epoch=int(claims["globalEpoch"]),
        attested_until_ms=int(claims["attestedUntilMs"]),
        quote_received_ms=int(claims["quoteReceivedMs"]),
        clock_ms=int(claims["clock"]),
        counters=bytes.fromhex(claims["counters"]),
        storage_public=bytes.fromhex(claims["storagePublic"]),
        sealed_pcrs={
            HashAlgorithm(bank): {
                int(index): bytes.fromhex(value)
                for index, value in sorted(values.items(), key=_index)
            }
            for bank, values in claims["sealedPcrs"].items()
        },
    )


def _index(item: tuple[str, str]) -> int:
    return int(item[0])
