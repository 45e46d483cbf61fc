"""Alembic's environment: revisions in ``versions``, applied by ``adapters.sql.schema.migrate``."""
