"""Logs, metrics and audit lines made from the journal events of the services."""
