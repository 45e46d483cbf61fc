"""Use cases: load through ports, call the core, store, tell the journal."""
