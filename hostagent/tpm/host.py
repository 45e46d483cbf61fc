"""What the host agent asks of its TPM: keys, certifications, quotes, credentials, secrets.

Stage: the agent's whole view of the TPM. Trusts nothing it reads: TPM bytes go to the authority
verbatim, which parses and judges them. Guarantees that each operation leaves no object or session
loaded, that PCR values handed out fit the digest of the quote beside them, and that operations are
serialised over threads. Does not keep state on disk (``hostagent.keys``), does not judge.
Source: TPM 2.0 Library part 3, revision 1.59; EK Credential Profile 2.6.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from tpm2_pytss import constants, types

from hostagent.sealed import SealedSecret, TpmError
from hostagent.spent import TPM, Spent
from hostagent.tpm import templates
from hostagent.tpm.device import (
    AES_CFB_SESSION,
    NO_SESSION,
    PASSWORD,
    Handle,
    SavedObject,
    TpmDevice,
    reported,
    selection_list,
)
from hostagent.tpm.templates import EndorsementAlgorithm, StorageAlgorithm
from hostagent.tpm.unseal import import_and_unseal

_QUOTE_ATTEMPTS = 8
"""PCR 10 moves with each measured file; after so many tries the host measures too fast to quote."""
_BANK_NAMES = {
    0x0004: "sha1",
    0x000B: "sha256",
    0x000C: "sha384",
    0x000D: "sha512",
    0x0012: "sm3_256",
}
_BANK_IDS = {name: number for number, name in _BANK_NAMES.items()}
_NULL_SCHEME = types.TPMT_SIG_SCHEME(scheme=constants.TPM2_ALG.NULL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """One EK of this TPM, as read and derived; nothing of it is verified here."""

    algorithm: EndorsementAlgorithm
    certificate: bytes
    """NV contents, padding and all; empty when the TPM has no certificate for this EK."""
    intermediates: tuple[bytes, ...]
    """NV contents of 0x01C00100 and up."""
    key: SavedObject


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyBlobs:
    """The AK as the TPM gave it out: useless on any other TPM, needed again at each start."""

    public: bytes
    """TPMT_PUBLIC."""
    private: bytes
    """Contents of TPM2B_PRIVATE, encrypted under the EK."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSelection:
    """PCRs of one bank, ascending; the bank by name (``sha256``)."""

    bank: str
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """A structure that the TPM signed with the AK."""

    attest: bytes
    """TPMS_ATTEST."""
    signature: bytes
    """TPMT_SIGNATURE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quoted(Attested):
    """A quote and the values it is about."""

    pcr_values: bytes
    """Values joined in the order of the selection; their hash is the quote's pcrDigest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmClock:
    """TPM2_ReadClock: unsigned, and not to be compared with any other TPM's."""

    clock: int
    """Milliseconds."""
    reset_count: int
    restart_count: int
    safe: bool


class HostTpm:
    """The TPM of this host behind any TCTI, such as ``device:/dev/tpmrm0`` or ``swtpm:path=…``.

    Every method raises ``TpmError`` when the TPM refuses or fails.
    """

    def __init__(self, tcti: str, spent: Spent | None = None) -> None:
        """``spent`` counts the time in the TPM, without the wait for it."""
        self._device, self._spent = TpmDevice(tcti), spent or Spent()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to the TPM."""
        self._device.close()

    @contextmanager
    def _using(self, action: str) -> Iterator[TpmDevice]:
        with self._device.lock, self._spent.on(TPM), reported(action):
            yield self._device

    # --- keys -------------------------------------------------------------------------------

    def endorsements(self) -> tuple[EndorsementAlgorithm, ...]:
        """The EKs for which the TPM holds a certificate, in the order of the profile's NV indices."""
        with self._using("list EK certificates") as device:
            present = device.nv_indices(0x01C00000, 0x01C000FF)
        return tuple(
            name
            for name, template in templates.ENDORSEMENTS.items()
            if template.certificate_index in present
        )

    def endorsement(self, algorithm: EndorsementAlgorithm) -> Endorsement:
        """Derive an EK and read its certificate. RSA may take a minute on a real TPM."""
        template = templates.ENDORSEMENTS[algorithm]
        with self._using(f"derive the {algorithm} EK") as device:
            override = device.nv_read(template.template_index)
            # the nonce belongs to the default template only; a template in NV has its own unique
            nonce = (
                device.nv_read(template.nonce_index)
                if template.nonce_index is not None and override is None
                else None
            )
            public = templates.endorsement_public(template, override, nonce)
            return Endorsement(
                algorithm=algorithm,
                certificate=device.nv_read(template.certificate_index) or b"",
                intermediates=device.nv_chain(),
                key=device.primary(public, constants.ESYS_TR.ENDORSEMENT),
            )

    def create_attestation_key(self, endorsement: Endorsement) -> KeyBlobs:
        """Make a new AK under the EK. The blobs must be kept: the TPM does not."""
        with (
            self._using("create the AK") as device,
            device.loaded(endorsement.key) as parent,
            self._endorsement_session(endorsement) as session,
        ):
            private, public, *_ = device.esapi.create(
                parent,
                types.TPM2B_SENSITIVE_CREATE(),
                templates.attestation_key(),
                session1=session,
            )
            return KeyBlobs(public=bytes(public.publicArea.marshal()), private=bytes(private))

    def load_attestation_key(self, endorsement: Endorsement, blobs: KeyBlobs) -> SavedObject:
        """Load an AK under the EK that it was made under; any other EK or TPM refuses it."""
        area, _ = types.TPMT_PUBLIC.unmarshal(blobs.public)
        public = types.TPM2B_PUBLIC(publicArea=area)

        def load() -> Handle:
            with (
                self._device.loaded(endorsement.key) as parent,
                self._endorsement_session(endorsement) as session,
            ):
                private = types.TPM2B_PRIVATE(blobs.private)
                return self._device.esapi.load(parent, private, public, session1=session)

        with self._using("load the AK") as device:
            return device.save(load(), public, load)

    def identity_key(self) -> SavedObject:
        """Derive the TLS identity key (owner hierarchy): the same key until TPM2_Clear."""
        with self._using("derive the TLS identity key") as device:
            return device.primary(templates.identity_key(), constants.ESYS_TR.OWNER)

    def storage_parent(self, algorithm: StorageAlgorithm = StorageAlgorithm.P256) -> SavedObject:
        """Derive the storage parent (owner primary): the same key until TPM2_Clear."""
        with self._using("derive the storage parent") as device:
            return device.primary(templates.storage_parent(algorithm), constants.ESYS_TR.OWNER)

    @contextmanager
    def _endorsement_session(
        self, endorsement: Endorsement, salted_to: Handle = NO_SESSION
    ) -> Iterator[Any]:
        """A policy session that authorises one use of the EK (profile B.6: policy A, or B over A)."""
        area, _ = types.TPMT_PUBLIC.unmarshal(endorsement.key.public)
        branches = templates.policy_branches(endorsement.key.public)
        if branches is None:
            raise TpmError("the EK has a policy that is neither A nor B of the EK profile")
        esapi = self._device.esapi
        session = esapi.start_auth_session(
            salted_to,
            NO_SESSION,
            constants.TPM2_SE.POLICY,
            AES_CFB_SESSION,
            int(area.nameAlg),
        )
        with self._device.flushed(session):
            esapi.policy_secret(constants.ESYS_TR.ENDORSEMENT, session, expiration=0)
            if branches:
                esapi.policy_or(
                    session, types.TPML_DIGEST([types.TPM2B_DIGEST(b) for b in branches])
                )
            yield session

    # --- proofs -----------------------------------------------------------------------------

    def certify(self, ak: SavedObject, key: SavedObject, qualifying_data: bytes) -> Attested:
        """TPM2_Certify: the AK states the name and qualified name of ``key``."""
        with (
            self._using("certify a key") as device,
            device.loaded(ak) as signer,
            device.loaded(key) as certified,
        ):
            attest, signature = device.esapi.certify(
                certified,
                signer,
                types.TPM2B_DATA(qualifying_data),
                _NULL_SCHEME,
            )
            return _attested(attest, signature)

    def activate_credential(
        self, endorsement: Endorsement, ak: SavedObject, blob: bytes, secret: bytes
    ) -> bytes:
        """TPM2_ActivateCredential: the secret, if it was made for this EK and this AK.

        Args:
            endorsement: the EK that the credential was encrypted to.
            ak: the key that the credential names.
            blob: TPM2B_ID_OBJECT, with its size.
            secret: TPM2B_ENCRYPTED_SECRET, with its size.
        """
        identity, encrypted = _credential(blob, secret)
        with (
            self._using("activate the credential") as device,
            device.loaded(ak) as activated,
            device.loaded(endorsement.key) as parent,
            self._endorsement_session(endorsement, salted_to=parent) as session,
        ):
            attributes = constants.TPMA_SESSION.CONTINUESESSION | constants.TPMA_SESSION.ENCRYPT
            device.esapi.trsess_set_attributes(session, attributes)
            return bytes(
                device.esapi.activate_credential(
                    activated,
                    parent,
                    identity,
                    encrypted,
                    session1=PASSWORD,
                    session2=session,
                )
            )

    def quote(
        self, ak: SavedObject, selection: tuple[BankSelection, ...], qualifying_data: bytes
    ) -> Quoted:
        """Quote PCRs together with values that fit, over several banks in the order given."""
        banks = [(_bank_id(chosen.bank), chosen.indices) for chosen in selection]
        with self._using("quote PCRs") as device, device.loaded(ak) as signer:
            for _ in range(_QUOTE_ATTEMPTS):
                values = b"".join(device.pcr_values(bank, indices) for bank, indices in banks)
                attest, signature = device.esapi.quote(
                    signer, selection_list(banks), types.TPM2B_DATA(qualifying_data), _NULL_SCHEME
                )
                if _quoted_digest(attest) == hashlib.sha256(values).digest():
                    made = _attested(attest, signature)
                    return Quoted(attest=made.attest, signature=made.signature, pcr_values=values)
        raise TpmError(f"PCRs changed during each of {_QUOTE_ATTEMPTS} quotes")

    def sign_digest(self, key: SavedObject, digest: bytes) -> bytes:
        """Sign a SHA-256 digest with the TLS identity key; the signature is a DER ECDSA-Sig-Value."""
        ticket = types.TPMT_TK_HASHCHECK(
            tag=constants.TPM2_ST.HASHCHECK, hierarchy=constants.TPM2_RH.NULL
        )
        with self._using("sign for TLS") as device, device.loaded(key) as handle:
            made = device.esapi.sign(handle, types.TPM2B_DIGEST(digest), _NULL_SCHEME, ticket)
            r, s = made.signature.ecdsa.signatureR, made.signature.ecdsa.signatureS
            return encode_dss_signature(
                int.from_bytes(bytes(r), "big"), int.from_bytes(bytes(s), "big")
            )

    # --- state ------------------------------------------------------------------------------

    def active_banks(self) -> tuple[BankSelection, ...]:
        """All allocated PCRs per bank; a bank whose hash we don't know is named ``0x…``."""
        with self._using("list PCR banks") as device:
            banks = device.banks()
        return tuple(
            BankSelection(bank=_BANK_NAMES.get(number, f"0x{number:04x}"), indices=indices)
            for number, indices in banks.items()
        )

    def read_pcrs(self, selection: BankSelection) -> bytes:
        """PCR values joined in ascending order, not signed by anyone."""
        with self._using("read PCRs") as device:
            return device.pcr_values(_bank_id(selection.bank), selection.indices)

    def read_clock(self) -> TpmClock:
        """The TPM's clock and counters, not signed by anyone."""
        with self._using("read the TPM clock") as device:
            info = device.esapi.read_clock().clockInfo
            return TpmClock(
                clock=int(info.clock),
                reset_count=int(info.resetCount),
                restart_count=int(info.restartCount),
                safe=bool(info.safe),
            )

    def import_and_unseal(self, storage: SavedObject, sealed: SealedSecret) -> bytearray:
        """Open the one-time secret of a KeyGrant; the caller wipes it (see ``tpm.unseal``)."""
        with self._using("open a KeyGrant") as device:
            return import_and_unseal(device, storage, sealed)


def _attested(attest: Any, signature: Any) -> Attested:
    return Attested(attest=bytes(attest), signature=bytes(signature.marshal()))


def _quoted_digest(attest: Any) -> bytes:
    decoded, _ = types.TPMS_ATTEST.unmarshal(bytes(attest))
    return bytes(decoded.attested.quote.pcrDigest)


def _bank_id(name: str) -> int:
    if name not in _BANK_IDS:
        raise TpmError(f"no PCR bank is called {name}")
    return _BANK_IDS[name]


def _credential(blob: bytes, secret: bytes) -> tuple[Any, Any]:
    try:
        identity, identity_size = types.TPM2B_ID_OBJECT.unmarshal(blob)
        encrypted, encrypted_size = types.TPM2B_ENCRYPTED_SECRET.unmarshal(secret)
    except Exception as failure:  # the marshalling layer raises many types
        raise TpmError(f"the credential does not decode: {failure}") from failure
    if (identity_size, encrypted_size) != (len(blob), len(secret)):
        raise TpmError("the credential has bytes left over")
    return identity, encrypted
