"""VerifiedEvidence, policy and baseline in, Verdict out; never raises."""
