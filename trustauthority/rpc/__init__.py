"""gRPC server: identity, authorisation matrix, error table, conversion, one file per service."""
