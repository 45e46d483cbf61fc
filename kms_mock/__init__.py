"""A development KMS that speaks real KMIP over mTLS, with faults on demand. Not for production."""
