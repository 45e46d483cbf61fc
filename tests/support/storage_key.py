"""A TPM storage key whose private half we hold: opens credentials and KeyGrants in software.

The opening side is tpm2-pytss, so that our wrapping is judged by somebody else's code. It imitates
no TPM policy: what a TPM refuses is tested on a real (software) TPM in tests/tpm.
"""

from dataclasses import replace

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tpm2_pytss import types
from tpm2_pytss.utils import unwrap

from hostagent.tpm import SavedObject, SealedSecret
from trustauthority.codec.tpm_key import public_from_key
from trustauthority.codec.tpm_public import encode_public, object_name
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import (
    EccParameters,
    ObjectAttributes,
    RsaParameters,
    SymmetricDefinition,
    TpmAlgorithm,
    TpmPublic,
)

STORAGE_ATTRIBUTES = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.USER_WITH_AUTH
    | ObjectAttributes.NO_DA
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.DECRYPT
)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def storage_public(
    private: PrivateKey,
    *,
    name_alg: HashAlgorithm = HashAlgorithm.SHA256,
    aes_bits: int = 128,
    mode: TpmAlgorithm = TpmAlgorithm.CFB,
    attributes: ObjectAttributes = STORAGE_ATTRIBUTES,
) -> TpmPublic:
    """The public area of a storage key (or of one that is wrong in a chosen way)."""
    bare = public_from_key(private.public_key(), attributes=attributes, scheme=None)
    assert isinstance(bare.parameters, RsaParameters | EccParameters)
    symmetric = SymmetricDefinition(algorithm=TpmAlgorithm.AES, key_bits=aes_bits, mode=mode)
    parameters = replace(bare.parameters, symmetric=symmetric)
    return replace(bare, parameters=parameters, name_alg=name_alg)


class SoftwareStorage:
    """Stands for the TPM that holds a storage parent; takes KeyGrants like ``HostTpm``."""

    def __init__(self, private: PrivateKey, **shape: object) -> None:
        self.public = storage_public(private, **shape)
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        self._sensitive = types.TPM2B_SENSITIVE.from_pem(pem).sensitiveArea
        self.opened: list[SealedSecret] = []

    @property
    def key(self) -> SavedObject:
        """The parent as the agent holds it; it can't be loaded into any TPM."""

        def derive() -> None:
            raise AssertionError("a software key has no TPM to be loaded into")

        name = object_name(self.public)
        return SavedObject(
            public=encode_public(self.public), name=name, context=None, derive=derive
        )

    def import_and_unseal(self, storage: SavedObject, sealed: SealedSecret) -> bytearray:
        """Undo the outer wrapping with the private key; keeps what it was given in ``opened``."""
        self.opened.append(sealed)
        return bytearray(bytes(self.unwrap(sealed).sensitiveArea.sensitive.bits))

    def unwrap(self, sealed: SealedSecret) -> types.TPM2B_SENSITIVE:
        """The sensitive area inside a duplicate, unwrapped by tpm2-pytss."""
        parent, _ = types.TPMT_PUBLIC.unmarshal(encode_public(self.public))
        area, _ = types.TPMT_PUBLIC.unmarshal(sealed.public)
        return unwrap(
            parent,
            self._sensitive,
            types.TPM2B_PUBLIC(publicArea=area),
            types.TPM2B_PRIVATE(sealed.duplicate),
            types.TPM2B_ENCRYPTED_SECRET(sealed.encrypted_seed),
        )
