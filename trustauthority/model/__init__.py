"""Frozen, slotted, keyword-only nouns. No behaviour beyond their invariants."""
