"""Bytes to model and back: pure, total, bounded; one error, MalformedEvidence(part, offset)."""
