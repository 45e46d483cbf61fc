"""Composition root: the trustauthority command."""

from trustauthority.main.commands import main

__all__ = ["main"]
