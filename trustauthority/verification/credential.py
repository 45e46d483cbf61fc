"""TPM2_MakeCredential in software: a secret that only one TPM opens, and only for one key.

Stage: the end of an enrolment. Trusts that ``ek_public`` was compared with a verified EK certificate
and that ``name`` was recomputed from the AK's public area, never taken from the host. Guarantees
that TPM2_ActivateCredential gives the secret to nobody but the TPM that holds that EK together with
an object of that name. Does not choose the secret and does not check the answer.
Source: TCG TPM 2.0 Library part 1, 24 (credential protection); part 3, 12.5 and 12.6.
"""

from dataclasses import dataclass

from trustauthority.codec.tpm_reader import encode_sized
from trustauthority.errors import InvalidRequest
from trustauthority.model.tpm import TpmPublic
from trustauthority.verification.protect import (
    SHARING_ENTROPY,
    share_secret,
    storage_name_algorithm,
    wrap_outer,
)

CREDENTIAL_ENTROPY = SHARING_ENTROPY
"""Bytes of fresh randomness that ``make_credential`` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What TPM2_ActivateCredential takes; safe to send over any channel."""

    blob: bytes
    """TPM2B_ID_OBJECT, with its size."""
    encrypted_secret: bytes
    """TPM2B_ENCRYPTED_SECRET, with its size."""


def make_credential(ek_public: TpmPublic, name: bytes, secret: bytes, entropy: bytes) -> Credential:
    """Encrypt ``secret`` to an EK so that it opens only beside the object called ``name``.

    Args:
        ek_public: the EK; its nameAlg and cipher are taken from it, both template ranges work.
        name: nameAlg ‖ digest of the object that must live in the same TPM.
        secret: at most as long as a digest of the EK's nameAlg.
        entropy: ``CREDENTIAL_ENTROPY`` fresh random bytes, used for nothing else.

    Raises:
        AlgorithmUnsupported: the EK is not an RSA or NIST P-256/P-384 storage key with AES-CFB.
        InvalidRequest: the secret is empty or longer than the EK can return.
    """
    limit = storage_name_algorithm(ek_public).size
    if not 0 < len(secret) <= limit:
        raise InvalidRequest(f"a credential of this EK has 1 to {limit} bytes", field="secret")
    shared = share_secret(ek_public, b"IDENTITY", entropy)
    return Credential(
        blob=encode_sized(wrap_outer(ek_public, shared.seed, name, encode_sized(secret))),
        encrypted_secret=encode_sized(shared.encrypted),
    )
