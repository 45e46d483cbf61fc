"""What passes between a KeyGrant's reader and the TPM, without either's machinery.

Stage: nouns of the host agent; the standard library only, so that ``hostagent.grant`` reads and
checks grants on a machine without a TPM software stack.
"""

from dataclasses import dataclass


class TpmError(Exception):
    """The TPM refused or failed a command. ``code`` is the TSS2 response code, 0 for our own checks."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSecret:
    """What TPM2_Import takes, and what the sealed object's policy asks for."""

    public: bytes
    """TPMT_PUBLIC of the sealed object."""
    duplicate: bytes
    """Contents of TPM2B_PRIVATE: outer wrapping under the storage parent."""
    encrypted_seed: bytes
    """Contents of TPM2B_ENCRYPTED_SECRET."""
    pcr_selection: bytes
    """TPML_PCR_SELECTION of the policy."""
    counters: bytes
    """resetCount ‖ restartCount, 8 bytes."""
    clock_bound: bytes
    """The TPM clock before which the secret opens, in milliseconds, 8 bytes."""
