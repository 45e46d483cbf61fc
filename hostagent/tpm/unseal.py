"""Open the one-time secret of a KeyGrant inside the TPM.

Stage: last step before a VM key exists on the host. Trusts that ``hostagent.grant`` checked the
release key's signature and every bound field. Guarantees that only this TPM, in this boot, before
the bound and with the granted PCR values gives the secret, because the TPM itself checks the policy;
that the answer crosses the bus encrypted under a session salted to the storage parent; and that
nothing stays loaded. A session that was satisfied before the bound unseals after it: none is kept.
Source: TPM 2.0 Library part 3, 13.3 (Import), 12.7 (Unseal), 23.7 (PolicyPCR), 23.10
(PolicyCounterTimer); part 1, 19.6 (sessions, salts) and 21 (parameter encryption).
"""

from typing import Any

from tpm2_pytss import constants, types

from hostagent.sealed import SealedSecret, TpmError
from hostagent.tpm.device import (
    AES_CFB_SESSION,
    NO_SESSION,
    Handle,
    SavedObject,
    TpmDevice,
    reported,
)

_CLOCK_OFFSET = 8
"""Offset of clock in TPMS_TIME_INFO."""
_COUNTERS_OFFSET = 16
"""Offset of resetCount, with restartCount right behind it."""
_PCR_CHANGED = 0x128
"""TPM_RC_PCR_CHANGED: some PCR was extended since PolicyPCR."""
_ATTEMPTS = 8
_SEALED_ATTRIBUTES = constants.TPMA_OBJECT.NODA | constants.TPMA_OBJECT.ADMINWITHPOLICY


def import_and_unseal(device: TpmDevice, storage: SavedObject, sealed: SealedSecret) -> bytearray:
    """Import, load and unseal; the caller wipes the result.

    Raises TpmError when the TPM refuses: another TPM or parent, another boot, too late, other PCRs.
    """
    public = _decode_public(sealed.public)
    # (1) the parent under the name it had at enrolment; a swapped one would be given the salt
    with device.loaded(storage) as parent:
        if device.name_of(parent) != storage.name:
            raise TpmError("the storage parent changed its name")
        # (2) outer wrapping: integrity and confidentiality under the parent's key
        with reported("import the granted secret"):
            private = device.esapi.import_(
                parent,
                types.TPM2B_DATA(),
                public,
                types.TPM2B_PRIVATE(sealed.duplicate),
                types.TPM2B_ENCRYPTED_SECRET(sealed.encrypted_seed),
                types.TPMT_SYM_DEF_OBJECT(algorithm=constants.TPM2_ALG.NULL),
            )
            loaded = device.esapi.load(parent, private, public)
        with device.flushed(loaded) as handle:
            return _unseal_while_pcrs_move(device, parent, handle, sealed)


def _unseal_while_pcrs_move(
    device: TpmDevice, parent: Handle, handle: Handle, sealed: SealedSecret
) -> bytearray:
    """Satisfy the policy anew when any PCR, such as IMA's 10, was extended before the answer.

    A changed *sealed* PCR then fails the policy itself, so nothing opens that should not.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return _unseal(device, parent, handle, sealed)
        except TpmError as failure:
            if failure.code != _PCR_CHANGED:
                raise
    return _unseal(device, parent, handle, sealed)


def _decode_public(public: bytes) -> Any:
    try:
        area, size = types.TPMT_PUBLIC.unmarshal(public)
    except Exception as failure:  # whatever the marshalling layer raises, it is not a public area
        raise TpmError(f"the sealed object's public area does not decode: {failure}") from failure
    if size != len(public) or int(area.objectAttributes) != int(_SEALED_ATTRIBUTES):
        raise TpmError("the sealed object has attributes that a KeyGrant never has")
    return types.TPM2B_PUBLIC(publicArea=area)


def _unseal(device: TpmDevice, parent: Handle, handle: Handle, sealed: SealedSecret) -> bytearray:
    with reported("satisfy the policy of the granted secret"):
        # (3) a policy session salted to the parent, so that the answer is encrypted on the bus
        session = device.esapi.start_auth_session(
            parent,
            NO_SESSION,
            constants.TPM2_SE.POLICY,
            AES_CFB_SESSION,
            constants.TPM2_ALG.SHA256,
        )
    with device.flushed(session), reported("satisfy the policy of the granted secret"):
        attributes = constants.TPMA_SESSION.CONTINUESESSION | constants.TPMA_SESSION.ENCRYPT
        device.esapi.trsess_set_attributes(session, attributes)
        # (4) the three assertions, in the order of the policy digest
        _satisfy(device, session, sealed)
        # (5) the TPM compares the session's policy digest and the PCR generation, then answers
        with reported("unseal the granted secret"):
            answer = device.esapi.unseal(handle, session1=session)
        secret = bytearray(answer.buffer)
        answer.buffer[:] = bytes(len(secret))
        return secret


def _satisfy(device: TpmDevice, session: Any, sealed: SealedSecret) -> None:
    selection, _ = types.TPML_PCR_SELECTION.unmarshal(sealed.pcr_selection)
    device.esapi.policy_pcr(session, types.TPM2B_DIGEST(), selection)
    device.esapi.policy_counter_timer(
        session,
        types.TPM2B_OPERAND(sealed.counters),
        constants.TPM2_EO.EQ,
        _COUNTERS_OFFSET,
    )
    device.esapi.policy_counter_timer(
        session,
        types.TPM2B_OPERAND(sealed.clock_bound),
        constants.TPM2_EO.UNSIGNED_LT,
        _CLOCK_OFFSET,
    )
