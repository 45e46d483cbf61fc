"""From the bytes of a quote to a ``VerifiedQuote``.

Stage: verification. Trusts on entry: the enrolled AK public and what is known of it, the challenge
that was checked before, and what the policy asks to be quoted. Trusts none of the bytes.
Guarantees on exit: this AK signed exactly these PCR values for exactly this challenge, over exactly
the PCRs that were asked for, later than anything it signed before. Does not judge any PCR value:
``verification.replay`` and ``appraisal`` do. ``clock_info.safe`` is handed on as a finding.
Source: TCG TPM 2.0 Library, Part 3, section 18.4 (TPM2_Quote); pitfalls 1-18.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from types import MappingProxyType

from trustauthority.codec.tpm import decode_attest, decode_signature
from trustauthority.errors import (
    ChallengeMismatch,
    NotAQuote,
    PcrDigestMismatch,
    PcrSelectionRejected,
    QuoteSignatureInvalid,
    TpmClockRolledBack,
)
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import (
    ATTEST_MAGIC,
    Attest,
    ClockInfo,
    OtherAttest,
    PcrSelection,
    QuoteAttest,
    Signature,
    TpmPublic,
)
from trustauthority.verification.signature import check_attestation_key, check_signature

MAX_PCR = 23
"""The highest PCR of a PC client platform."""

_DIGESTS = {
    HashAlgorithm.SHA1: hashlib.sha1,
    HashAlgorithm.SHA256: hashlib.sha256,
    HashAlgorithm.SHA384: hashlib.sha384,
    HashAlgorithm.SHA512: hashlib.sha512,
}
"""The hashes that ``check_signature`` lets through; SHA-1 only where a policy names it."""

PcrValues = Mapping[HashAlgorithm, Mapping[int, bytes]]
"""PCR values by bank and index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteExpectation:
    """What a quote has to be, from the enrolment, the challenge and the policy."""

    attestation_key: TpmPublic
    """The enrolled AK."""
    qualified_name: bytes | None
    """Of the AK in its hierarchy, as proven at enrolment; None when that was never shown."""
    qualifying_data: bytes
    """What ``challenge.qualifying_data`` gives; never empty."""
    selection: tuple[PcrSelection, ...]
    """Banks and PCRs that the policy asks for."""
    last_clock: ClockInfo | None
    """Of the newest structure this AK was seen to sign; None before the first."""
    allow_sha1: bool = False
    """A named policy accepts SHA-1 signatures and a SHA-1 bank alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedQuote:
    """PCR values that the enrolled AK signed for our challenge. Constructed in this module only."""

    pcrs: PcrValues
    selection: tuple[PcrSelection, ...]
    clock_info: ClockInfo
    firmware_version: int
    qualified_signer: bytes
    extra_data: bytes
    attest_sha256: bytes
    """Names this quote; an ECDSA signature would not, for (r, n - s) is another one (pitfall 13)."""


def verify_quote(
    *, attest: bytes, signature: bytes, pcr_values: bytes, expectation: QuoteExpectation
) -> VerifiedQuote:
    """Verify a quote step by step; the first doubt refuses it.

    ``pcr_values`` is the concatenation of the PCR values in the order of the quote's selection.

    Raises:
        MalformedEvidence: bytes that are no TPMS_ATTEST or TPMT_SIGNATURE.
        EvidenceRejected: its subclass says which step failed.
    """
    # (1) Structure, magic and type, then the signature of an attestation key over these very bytes.
    quote, decoded_signature = authenticate_quote(
        attest=attest,
        signature=signature,
        attestation_key=expectation.attestation_key,
        allow_sha1=expectation.allow_sha1,
    )
    # (2) It was made by the AK in the hierarchy in which it was enrolled.
    check_signer(quote, expectation.qualified_name)
    # (3) It answers this challenge.
    check_qualifying_data(quote, expectation.qualifying_data)
    # (4) It covers what the policy asks: every bank and PCR, and no other.
    check_selection_form(quote.selection, allow_sha1=expectation.allow_sha1)
    check_selection_matches(quote.selection, expectation.selection)
    # (5) The PCR values are the signed ones.
    pcrs = split_pcr_values(quote.selection, pcr_values)
    check_pcr_digest(quote, pcr_values, decoded_signature.hash)
    # (6) It is newer than everything this AK signed before.
    check_clock_forward(quote.clock_info, expectation.last_clock)
    return VerifiedQuote(
        pcrs=pcrs,
        selection=quote.selection,
        clock_info=quote.clock_info,
        firmware_version=quote.firmware_version,
        qualified_signer=quote.qualified_signer,
        extra_data=quote.extra_data,
        attest_sha256=hashlib.sha256(attest).digest(),
    )


def authenticate_quote(
    *, attest: bytes, signature: bytes, attestation_key: TpmPublic, allow_sha1: bool = False
) -> tuple[QuoteAttest, Signature]:
    """Decode a quote that ``attestation_key`` signed. It may be old, or for somebody else.

    Raises:
        MalformedEvidence, NotAQuote, QuoteSignatureInvalid.
    """
    quote = require_quote(decode_attest(attest))
    decoded_signature = decode_signature(signature)
    check_attestation_key(attestation_key)
    check_signature(attestation_key, attest, decoded_signature, allow_sha1=allow_sha1)
    return quote, decoded_signature


def require_quote(attest: Attest) -> QuoteAttest:
    """The quote, if it is one.

    Raises:
        NotAQuote: no TPM made it (magic), or it is another kind of structure.
    """
    if isinstance(attest, QuoteAttest):
        return attest
    if isinstance(attest, OtherAttest) and attest.magic != ATTEST_MAGIC:
        raise NotAQuote(f"magic 0x{attest.magic:08x} is not that of a structure made by a TPM")
    kind = f"type 0x{attest.type:04x}" if isinstance(attest, OtherAttest) else "a certification"
    raise NotAQuote(f"the structure is {kind}, not a quote")


def check_signer(quote: QuoteAttest, qualified_name: bytes | None) -> None:
    """Compare the signer that the TPM named with the enrolled AK in its hierarchy (pitfall 18).

    Raises:
        QuoteSignatureInvalid: another name.
    """
    if qualified_name is not None and quote.qualified_signer != qualified_name:
        raise QuoteSignatureInvalid(
            "qualifiedSigner is not the qualified name of the enrolled AK: another hierarchy"
        )


def check_qualifying_data(quote: QuoteAttest, expected: bytes) -> None:
    """Compare extraData with the answer to our challenge, whole and in constant time (pitfall 3).

    Raises:
        ChallengeMismatch: any difference, or an empty expectation, which would prove nothing.
    """
    if not expected or not hmac.compare_digest(quote.extra_data, expected):
        raise ChallengeMismatch("extraData is not the qualifying data of this challenge")


def check_selection_form(selection: tuple[PcrSelection, ...], *, allow_sha1: bool) -> None:
    """Refuse selections that prove nothing or mean two things (pitfalls 5-7).

    Raises:
        PcrSelectionRejected: nothing selected, a bank twice or empty, a PCR that does not exist, or
            nothing but SHA-1 where no policy allows it.
    """
    banks = {entry.bank for entry in selection}
    if not selection:
        raise PcrSelectionRejected("the quote selects no PCR")
    if len(banks) != len(selection):
        raise PcrSelectionRejected("the quote lists a bank twice")
    for entry in selection:
        if not entry.indices:
            raise PcrSelectionRejected(f"the quote selects no PCR of {entry.bank}")
        if entry.indices[-1] > MAX_PCR:
            raise PcrSelectionRejected(
                f"the quote selects PCR {entry.indices[-1]} of {entry.bank}, which does not exist"
            )
    if banks == {HashAlgorithm.SHA1} and not allow_sha1:
        raise PcrSelectionRejected("the quote covers the SHA-1 bank only")


def check_selection_matches(
    quoted: Sequence[PcrSelection], expected: Sequence[PcrSelection]
) -> None:
    """Compare two selections as a set of PCRs per bank (pitfall 4).

    Raises:
        PcrSelectionRejected: naming a bank and the PCRs that are missing or too many.
    """
    if quoted == expected:
        return  # the usual case: the agent asks the TPM in the order of the policy
    have = {entry.bank: set(entry.indices) for entry in quoted}
    want = {entry.bank: set(entry.indices) for entry in expected}
    if have == want:
        return
    for bank in sorted(have.keys() | want.keys()):
        missing = sorted(want.get(bank, set()) - have.get(bank, set()))
        extra = sorted(have.get(bank, set()) - want.get(bank, set()))
        if missing or extra:
            raise PcrSelectionRejected(
                f"bank {bank}: PCRs {missing} are missing, PCRs {extra} were not asked for",
                bank=bank,
            )
    raise PcrSelectionRejected("the banks are not the ones asked for")


def split_pcr_values(selection: tuple[PcrSelection, ...], values: bytes) -> PcrValues:
    """Cut concatenated PCR values by bank and index.

    Raises:
        PcrSelectionRejected: more or fewer bytes than the selection has PCRs.
    """
    pcrs: dict[HashAlgorithm, Mapping[int, bytes]] = {}
    cuts = _cuts(tuple([(entry.bank.size, len(entry.indices)) for entry in selection]))
    if len(values) != cuts.size:
        raise PcrSelectionRejected(
            f"the PCR values have {len(values)} bytes, the selection asks for {cuts.size}"
        )
    pieces = iter(cuts.unpack(values))
    for entry in selection:
        # the indices come first: zip then takes no piece too many from the iterator
        pcrs[entry.bank] = MappingProxyType(dict(zip(entry.indices, pieces, strict=False)))
    return MappingProxyType(pcrs)


@lru_cache(maxsize=256)
def _cuts(shape: tuple[tuple[int, int], ...]) -> Struct:
    """Sizes and numbers of PCR values, in order, as one layout. Remembered: a fleet asks for few."""
    return Struct("".join(f"{size}s" * number for size, number in shape))


def check_pcr_digest(quote: QuoteAttest, pcr_values: bytes, signing_hash: HashAlgorithm) -> None:
    """Compare pcrDigest with the hash, of the *signing scheme*, over all values (pitfall 8).

    Raises:
        PcrDigestMismatch: the values are not the signed ones.
    """
    digest = _DIGESTS[signing_hash](pcr_values).digest()
    if not hmac.compare_digest(digest, quote.pcr_digest):
        raise PcrDigestMismatch("pcrDigest is not the hash of the PCR values that came with it")


def check_clock_forward(now: ClockInfo, last: ClockInfo | None) -> None:
    """Compare (resetCount, restartCount, clock) with the newest one seen; it must grow (N17).

    Raises:
        TpmClockRolledBack: equal or smaller: a replay, a restored state or a clone.
    """
    if last is not None and now.position <= last.position:
        raise TpmClockRolledBack(
            f"(resetCount, restartCount, clock) is {now.position}, not after {last.position}"
        )
