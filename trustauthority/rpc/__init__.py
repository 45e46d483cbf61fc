"""gRPC server: identity, authorisation matrix, error table, conversion, one file per service.

TLS 1.3 only: the one TLS 1.2 suite that is named below needs a pre-shared key, which nobody has, so
that nothing older can be negotiated. gRPC's own log is off unless it is asked for: its lines are no
records, and whoever can open a connection could write them. gRPC reads both when it is first imported.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
