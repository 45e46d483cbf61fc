"""Grants, leases, fences and moves as pure transition functions, authority side and host side."""
