"""The host's TPM: the only package that imports tpm2-pytss."""

from hostagent.tpm.device import SavedObject, TpmError
from hostagent.tpm.host import (
    Attested,
    BankSelection,
    Endorsement,
    HostTpm,
    KeyBlobs,
    Quoted,
    TpmClock,
)
from hostagent.tpm.templates import EndorsementAlgorithm, StorageAlgorithm
from hostagent.tpm.unseal import SealedSecret

__all__ = [
    "Attested",
    "BankSelection",
    "Endorsement",
    "EndorsementAlgorithm",
    "HostTpm",
    "KeyBlobs",
    "Quoted",
    "SavedObject",
    "SealedSecret",
    "StorageAlgorithm",
    "TpmClock",
    "TpmError",
]
