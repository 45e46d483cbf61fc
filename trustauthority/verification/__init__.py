"""Evidence and an enrolment in, VerifiedEvidence out, or EvidenceRejected."""
