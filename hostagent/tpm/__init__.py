"""The host's TPM: the only package that imports tpm2-pytss."""

from hostagent.sealed import SealedSecret, TpmError
from hostagent.tpm.device import SavedObject
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
