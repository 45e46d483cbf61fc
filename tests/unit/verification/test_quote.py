"""Quote verification: each step refuses on its own, and nothing passes by being absent."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tpm_structures as build

from trustauthority.codec.tpm import decode_public
from trustauthority.errors import (
    ChallengeMismatch,
    EvidenceRejected,
    MalformedEvidence,
    NotAQuote,
    PcrDigestMismatch,
    PcrSelectionRejected,
    QuoteSignatureInvalid,
    TpmClockRolledBack,
)
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.policy import EvidencePolicy, Policy
from trustauthority.model.tpm import ClockInfo, PcrSelection
from trustauthority.verification.pipeline import expected_selection
from trustauthority.verification.quote import (
    QuoteExpectation,
    check_clock_forward,
    check_selection_matches,
    split_pcr_values,
    verify_quote,
)

AK = build.SoftwareKey.ecdsa()
PUBLIC = decode_public(AK.public)
NONCE = b"n" * 32
PCRS = {"sha1": {0: b"\1" * 20}, "sha256": {0: b"\2" * 32, 7: b"\3" * 32}}
SIGNER = b"\0\x0b" + b"q" * 32
QUOTE = build.make_quote(AK, pcrs=PCRS, extra_data=NONCE, signer=SIGNER)
SELECTION = (
    PcrSelection(bank=HashAlgorithm.SHA1, indices=(0,)),
    PcrSelection(bank=HashAlgorithm.SHA256, indices=(0, 7)),
)
EXPECTATION = QuoteExpectation(
    attestation_key=PUBLIC,
    qualified_name=SIGNER,
    qualifying_data=NONCE,
    selection=SELECTION,
    last_clock=None,
)


def verify(quote=QUOTE, **changes):
    """Verify with the standing expectation, changed where the test says so."""
    return verify_quote(
        attest=quote.attest,
        signature=quote.signature,
        pcr_values=quote.pcr_values,
        expectation=replace(EXPECTATION, **changes),
    )


class TestVerifyQuote:
    def test_verified_values_are_the_signed_ones(self):
        """A genuine quote gives the values by bank and PCR, its clock, and a name for itself."""
        verified = verify()

        assert verified.pcrs[HashAlgorithm.SHA256][7] == b"\3" * 32
        assert verified.pcrs[HashAlgorithm.SHA1] == {0: b"\1" * 20}
        assert verified.clock_info.position == (5, 2, 1_000)
        assert verified.attest_sha256 == hashlib.sha256(QUOTE.attest).digest()
        assert (verified.selection, verified.extra_data) == (SELECTION, NONCE)
        assert verified.qualified_signer == SIGNER
        assert verified.firmware_version == 0x2024_0000_0001

    def test_verified_values_can_not_be_changed(self):
        """What was verified stays what was verified."""
        with pytest.raises(TypeError):
            verify().pcrs[HashAlgorithm.SHA256][7] = bytes(32)
        with pytest.raises(TypeError):
            verify().pcrs[HashAlgorithm.SHA1] = {}

    def test_signer_of_another_hierarchy(self):
        """A quote whose signer has another qualified name is refused (pitfall 18)."""
        with pytest.raises(QuoteSignatureInvalid, match="qualifiedSigner"):
            verify(qualified_name=b"\0\x0b" + b"o" * 32)

    def test_unknown_qualified_name_is_not_compared(self):
        """Where no qualified name was proven, the other checks still hold."""
        assert verify(qualified_name=None).qualified_signer == SIGNER

    def test_empty_expectation_is_never_met(self):
        """An empty nonce proves no freshness, even when the quote has none either (pitfall 3)."""
        quote = build.make_quote(AK, pcrs=PCRS, extra_data=b"", signer=SIGNER)
        with pytest.raises(ChallengeMismatch):
            verify(quote, qualifying_data=b"")

    @pytest.mark.parametrize(
        "asked",
        [
            SELECTION[:1],
            SELECTION[1:],
            (SELECTION[0], PcrSelection(bank=HashAlgorithm.SHA256, indices=(0,))),
            (SELECTION[0], PcrSelection(bank=HashAlgorithm.SHA256, indices=(0, 7, 8))),
            (*SELECTION, PcrSelection(bank=HashAlgorithm.SHA384, indices=(0,))),
            (),
        ],
        ids=["bank extra", "bank extra 2", "PCR extra", "PCR missing", "bank missing", "nothing"],
    )
    def test_other_selection_than_policy_asks(self, asked):
        """Neither fewer nor more PCRs or banks than the policy asks (pitfall 4, N14)."""
        with pytest.raises(PcrSelectionRejected):
            verify(selection=asked)

    def test_selections_are_sets(self):
        """The order in which a policy lists banks does not matter; the quote's order rules."""
        assert verify(selection=SELECTION[::-1]).selection == SELECTION

    @pytest.mark.parametrize("change", [b"", b"x"], ids=["short", "long"])
    def test_values_of_another_length(self, change):
        """PCR values are exactly as many bytes as the selection has (pitfall 9)."""
        values = QUOTE.pcr_values + change if change else QUOTE.pcr_values[:-1]
        with pytest.raises(PcrSelectionRejected, match="bytes"):
            verify(replace(QUOTE, pcr_values=values))

    def test_every_flipped_bit(self):
        """No bit of a quote can change unnoticed (N13)."""
        for bit in range(8 * len(QUOTE.attest)):
            flipped = bytearray(QUOTE.attest)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises((EvidenceRejected, MalformedEvidence)):
                verify(replace(QUOTE, attest=bytes(flipped)))

    def test_every_flipped_bit_of_a_value(self):
        """No bit of a PCR value can change unnoticed (N13)."""
        for bit in range(8 * len(QUOTE.pcr_values)):
            flipped = bytearray(QUOTE.pcr_values)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(PcrDigestMismatch):
                verify(replace(QUOTE, pcr_values=bytes(flipped)))

    def test_other_magic_and_type_are_told_apart(self):
        """What no TPM made, and what a TPM made that is no quote, are two refusals (pitfall 2)."""
        for changed, said in (
            (b"\xfeTCG" + QUOTE.attest[4:], "magic 0xfe544347"),
            (QUOTE.attest[:4] + b"\x80\x1a" + QUOTE.attest[6:], "type 0x801a, not a quote"),
        ):
            with pytest.raises(NotAQuote, match=said):
                verify(replace(QUOTE, attest=changed))

    def test_certification_is_named_as_such(self):
        """A TPM2_Certify by the same AK with the same extraData is no quote (pitfall 2)."""
        message, signature = build.make_certification(
            AK, name=bytes(34), qualified_name=bytes(34), extra_data=NONCE
        )
        with pytest.raises(NotAQuote, match="certification"):
            verify(replace(QUOTE, attest=message, signature=signature))

    def test_tls_key_signs_no_quote(self):
        """A key that is not restricted never counts as a signer of TPM structures (design 6.1)."""
        key = replace(AK, attributes=build.TLS_ATTRIBUTES)
        with pytest.raises(QuoteSignatureInvalid, match="no attestation key"):
            verify(attestation_key=decode_public(key.public))

    @settings(max_examples=200, deadline=None)
    @given(attest=st.binary(max_size=200), signature=st.binary(max_size=80))
    def test_any_bytes_are_refused_with_a_reason(self, attest, signature):
        """Whatever a host sends, the answer is one of our errors (N04, N12)."""
        with pytest.raises((EvidenceRejected, MalformedEvidence)):
            verify(replace(QUOTE, attest=attest, signature=signature))


class TestClock:
    LAST = ClockInfo(clock=1_000, reset_count=5, restart_count=2, safe=True)

    @pytest.mark.parametrize(
        "last",
        [
            (999, 5, 2),
            (10_000_000, 5, 1),
            (10_000_000, 4, 9),
            (2**64 - 1, 4, 2**32 - 1),
        ],
        ids=["later", "resumed", "rebooted, clock lower", "rebooted, restarts lower"],
    )
    def test_forward(self, last):
        """(resetCount, restartCount, clock) moves forward as a tuple (design 6.2)."""
        clock, reset_count, restart_count = last
        seen = ClockInfo(
            clock=clock, reset_count=reset_count, restart_count=restart_count, safe=True
        )
        assert verify(last_clock=seen).clock_info.position == (5, 2, 1_000)

    @pytest.mark.parametrize(
        "last",
        [(1_000, 5, 2), (1_001, 5, 2), (0, 5, 3), (0, 6, 0)],
        ids=["same", "clock back", "restarts back", "resets back"],
    )
    def test_not_forward(self, last):
        """An equal or earlier tuple is a replay, a rollback or a clone (N17, rule 16)."""
        clock, reset_count, restart_count = last
        seen = ClockInfo(
            clock=clock, reset_count=reset_count, restart_count=restart_count, safe=True
        )
        with pytest.raises(TpmClockRolledBack):
            verify(last_clock=seen)

    @given(st.tuples(*[st.integers(0, 2**32 - 1)] * 6))
    def test_order_is_total_and_strict(self, numbers):
        """Of two different positions exactly one may follow the other; none follows itself."""
        a = ClockInfo(clock=numbers[0], reset_count=numbers[1], restart_count=numbers[2], safe=True)
        b = ClockInfo(clock=numbers[3], reset_count=numbers[4], restart_count=numbers[5], safe=True)

        def follows(now, last):
            try:
                check_clock_forward(now, last)
            except TpmClockRolledBack:
                return False
            return True

        assert not follows(a, a)
        assert follows(a, b) + follows(b, a) == (a.position != b.position)

    def test_unsafe_clock_is_handed_on(self):
        """safe=NO refuses nothing by itself; the finding is for appraisal (pitfall 16)."""
        quote = build.make_quote(
            AK, pcrs=PCRS, extra_data=NONCE, signer=SIGNER, clock=(1_000, 5, 2, 0)
        )
        assert verify(quote).clock_info.safe is False


class TestSelections:
    def test_mismatch_names_bank_and_pcrs(self):
        """A refusal says which PCRs of which bank are missing or too many."""
        asked = (PcrSelection(bank=HashAlgorithm.SHA256, indices=(0, 9)),)
        with pytest.raises(PcrSelectionRejected, match=r"sha256.*\[9\] are missing.*\[7\]"):
            check_selection_matches(SELECTION[1:], asked)

    def test_an_empty_bank_is_not_no_bank(self):
        """A bank without PCRs that was not asked for is a difference (rule 5)."""
        empty = PcrSelection(bank=HashAlgorithm.SHA384, indices=())
        with pytest.raises(PcrSelectionRejected, match="banks"):
            check_selection_matches((*SELECTION, empty), SELECTION)

    def test_values_are_cut_in_order_of_selection(self):
        """Values belong to banks in the order of the quote, not of any policy."""
        cut = split_pcr_values(SELECTION, b"a" * 20 + b"b" * 32 + b"c" * 32)
        assert cut[HashAlgorithm.SHA256] == {0: b"b" * 32, 7: b"c" * 32}


class TestExpectedSelection:
    PCRS = (0, 7, 10)

    @pytest.mark.parametrize(
        ("quoted", "expected"),
        [
            (["sha256"], ["sha256"]),
            (["sha1", "sha256"], ["sha1", "sha256"]),
            (["sha1"], ["sha1", "sha256"]),
            (["sha384"], ["sha256"]),
        ],
    )
    def test_the_bank_that_claims_rest_on_is_always_asked_for(self, quoted, expected):
        """Rule 40: other banks of the policy where the TPM has them; a quote can't leave the claimed one out."""
        pcrs = {bank: dict.fromkeys(self.PCRS, bytes(HashAlgorithm(bank).size)) for bank in quoted}
        quote = build.make_quote(AK, pcrs=pcrs, extra_data=NONCE, signer=SIGNER)
        policy = Policy(name="p", evidence=EvidencePolicy(pcrs=self.PCRS))
        asked = expected_selection(quote.attest, policy)
        assert [str(one.bank) for one in asked] == expected
        assert {one.indices for one in asked} == {self.PCRS}

    def test_a_bank_that_is_left_out_is_named(self):
        """Rule 4: the refusal says which bank and which PCRs are missing, or were not asked for."""
        one = PcrSelection(bank=HashAlgorithm.SHA256, indices=(0, 7))
        two = PcrSelection(bank=HashAlgorithm.SHA1, indices=(0, 7))
        with pytest.raises(PcrSelectionRejected, match=r"bank sha1: PCRs \[0, 7\] are missing"):
            check_selection_matches((one,), (one, two))
        with pytest.raises(
            PcrSelectionRejected, match=r"bank sha1: .* \[0, 7\] were not asked for"
        ):
            check_selection_matches((one, two), (one,))
        check_selection_matches((two, one), (one, two))
