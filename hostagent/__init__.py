"""The host agent: ships TPM bytes verbatim, keeps leases, opens keys inside the TPM.

gRPC reads its cipher list once, when it is first imported, and has no setting for the lowest TLS
version. A list of nothing but a pre-shared-key cipher, for which there is never a key, leaves
TLS 1.2 without any cipher; those of TLS 1.3 are not affected by the list.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"
