"""The store ports on SQLAlchemy Core; decisions are single conditional statements."""
