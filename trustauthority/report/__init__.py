"""Verdict in, signed Report out; and the check of such tokens."""
