"""How people and programs reach the authority: contexts, channel, errors, retries, checkpoints.

TLS 1.3 only: the one TLS 1.2 suite that is named below needs a pre-shared key, which nobody has, so
that nothing older can be negotiated. gRPC reads the variable when it is first imported.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"
