"""A KEK in a KMS that speaks KMIP.

Stage: adapter, run in the key room's child only: the KEK comes out of the KMS (Get), as KMIP is used in
the world, in the clear or wrapped by a second key of the KMS that we hold too. Trusts the KMS to keep
keys, and nothing on the network (``kmip_client``). Guarantees: a KEK is fetched for each use, only
while it is active, and never kept here; every failure is KmsUnavailable with words of our own, for
what a peer or a library says about an answer may contain the answer.
Source: KMIP 1.4 (Create 4.1, Activate 4.19, Get 4.11, Get Attributes 4.12, Locate 4.9, Revoke 4.20,
Destroy 4.21, Query 4.25, Discover Versions 4.26); RFC 3394.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap
from kmip.core import enums
from kmip.core.attributes import Name
from kmip.core.factories.attributes import AttributeFactory
from kmip.pie.objects import SymmetricKey

from trustauthority.adapters.kms.blob import Blob, WrapAlgorithm, bound, read_blob
from trustauthority.adapters.kms.envelope import KEK_BYTES, NONCE_BYTES, seal, unseal, wipe
from trustauthority.adapters.kms.kmip_client import KmipServers
from trustauthority.adapters.kms.kmip_health import kmip_health
from trustauthority.adapters.kms.secret_file import read_secret
from trustauthority.adapters.kms.settings import KmipSettings
from trustauthority.errors import KmsUnavailable
from trustauthority.model.kms import KmsHealth, ProviderKind

_KIND = ProviderKind.KMIP
_GCM = WrapAlgorithm.KEK_GCM
_MAX_ID = 128
_WRAP_OVERHEAD = 8
_MAX_LOCATED = 1000


class KmipKms:
    """A KMS with one or more KMIP servers. Each call is one connection, or one per server tried."""

    def __init__(
        self, settings: KmipSettings, *, now_ms: Callable[[], int] = lambda: int(time.time() * 1000)
    ) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._servers = KmipServers(settings)

    def create_kek(self, name: str) -> str:
        """Let the KMS make an AES-256 key and activate it.

        Returns: the id under which it is fetched. The KMS takes a name twice, so only ids count.

        Raises:
            KmsUnavailable: no key was made, or one that is not active and never used.
        """
        masks = [enums.CryptographicUsageMask.ENCRYPT, enums.CryptographicUsageMask.DECRYPT]

        def create(client: Any) -> str:
            uid = client.create(
                enums.CryptographicAlgorithm.AES,
                8 * KEK_BYTES,
                name=name,
                cryptographic_usage_mask=masks,
            )
            if not _is_id(uid):
                raise KmsUnavailable("the KMS gave a new key an id that we do not store")
            client.activate(uid)
            return str(uid)

        return self._servers.ask(create, again=False)

    def rotate(self, kek_id: str, name: str) -> str:  # noqa: ARG002  nothing links two KMIP keys
        """Make another KEK: a KMIP key has no versions."""
        return self.create_kek(name)

    def wrap(self, kek_id: str, vm_key: bytearray, aad: bytes) -> bytes:
        """Fetch the KEK and encrypt here."""
        kek = self.get_kek(kek_id)
        try:
            body = seal(kek, vm_key, bound(_KIND, _GCM, aad), os.urandom(NONCE_BYTES))
        finally:
            wipe(kek)
        return Blob(kind=_KIND, algorithm=_GCM, body=body).encode()

    def unwrap(self, kek_id: str, wrapped: bytes, aad: bytes) -> bytearray:
        """Fetch the KEK and decrypt here."""
        blob = read_blob(wrapped, _KIND, (_GCM,))
        kek = self.get_kek(kek_id)
        try:
            return unseal(kek, blob.body, bound(_KIND, _GCM, aad))
        finally:
            wipe(kek)

    def get_kek(self, uid: str) -> bytearray:
        """Fetch a KEK; the caller wipes it.

        Raises:
            KmsUnavailable: the KMS does not answer, the key is not active (the message names its
                state), or the answer is not an AES-256 key.
        """
        if not _is_id(uid):
            raise KmsUnavailable("this is no id of a KEK")

        def fetch(client: Any) -> bytearray:
            state = _state(client, uid)
            if state is not enums.State.ACTIVE:
                found = state.name.lower().replace("_", "-")
                raise KmsUnavailable(
                    f"KEK {uid} is {found} in the KMS, not active", kek=uid, state=found
                )
            if not self._settings.transport_key_id:
                return _aes_256(client.get(uid))
            return self._get_wrapped(client, uid)

        return self._servers.ask(fetch)

    # --- administration ------------------------------------------------------------------------

    def locate(self, name: str) -> Sequence[str]:
        """Ids of the keys with a name that are visible to us; there may be several."""
        found = self._servers.ask(
            lambda client: client.locate(attributes=[_named(name)], maximum_items=_MAX_LOCATED)
        )
        return tuple(str(uid) for uid in found if _is_id(uid))

    def revoke(self, uid: str, *, compromised: bool) -> None:
        """Take a KEK out of use: from now on it wraps and unwraps nothing."""
        reason = (
            enums.RevocationReasonCode.KEY_COMPROMISE
            if compromised
            else enums.RevocationReasonCode.CESSATION_OF_OPERATION
        )
        self._servers.ask(lambda client: client.revoke(reason, uid))

    def destroy(self, uid: str) -> None:
        """Destroy a KEK that was revoked, and with it everything that it wrapped."""
        self._servers.ask(lambda client: client.destroy(uid), again=False)

    def close(self) -> None:
        """Nothing is kept between two calls."""

    def health(self) -> KmsHealth:
        """Whether each server answers us, who it says it is, or what is wrong with it."""
        return kmip_health(self._settings, self._servers.all, now_ms=self._now_ms())

    def _get_wrapped(self, client: Any, uid: str) -> bytearray:
        """Get a KEK wrapped by the transport key, which the KMS and we have."""
        settings = self._settings
        if settings.transport_key is None:
            raise KmsUnavailable("transport_key_id needs a transport_key")
        answer = client.get(
            uid,
            key_wrapping_specification={
                "wrapping_method": enums.WrappingMethod.ENCRYPT,
                "encryption_key_information": {
                    "unique_identifier": settings.transport_key_id,
                    "cryptographic_parameters": {
                        "block_cipher_mode": enums.BlockCipherMode.NIST_KEY_WRAP
                    },
                },
                "encoding_option": enums.EncodingOption.NO_ENCODING,
            },
        )
        wrapped = _wrapped_aes_256(answer)
        transport_key = bytearray(read_secret(settings.transport_key))
        try:
            return bytearray(aes_key_unwrap(transport_key, wrapped))
        except (InvalidUnwrap, ValueError):
            raise KmsUnavailable(
                f"the transport key does not unwrap KEK {uid}: is it that of {settings.transport_key}?"
            ) from None
        finally:
            wipe(transport_key)


def _state(client: Any, uid: str) -> enums.State:
    _, attributes = client.get_attributes(uid, ["State"])
    states = [
        attribute.attribute_value.value
        for attribute in attributes
        if attribute.attribute_name.value == "State"
    ]
    if len(states) != 1 or not isinstance(states[0], enums.State):
        raise KmsUnavailable("the KMS does not tell the state of the KEK")
    return states[0]


def _named(name: str) -> Any:
    value = Name.create(name, enums.NameType.UNINTERPRETED_TEXT_STRING)
    return AttributeFactory().create_attribute(enums.AttributeType.NAME, value)


def _aes_256(answer: object) -> bytearray:
    if not _is_key(answer) or answer.key_wrapping_data or len(answer.value) != KEK_BYTES:
        raise KmsUnavailable("the KMS answered with something else than an AES-256 key")
    return bytearray(answer.value)


def _wrapped_aes_256(answer: object) -> bytes:
    if (
        not _is_key(answer)
        or not answer.key_wrapping_data
        or len(answer.value) != KEK_BYTES + _WRAP_OVERHEAD
    ):
        raise KmsUnavailable("the KMS answered with something else than a wrapped AES-256 key")
    return bytes(answer.value)


def _is_key(answer: object) -> TypeGuard[Any]:
    return (
        isinstance(answer, SymmetricKey)
        and answer.cryptographic_algorithm is enums.CryptographicAlgorithm.AES
        and answer.cryptographic_length == 8 * KEK_BYTES
        and answer.key_format_type is enums.KeyFormatType.RAW
    )


def _is_id(uid: object) -> bool:
    return isinstance(uid, str) and 0 < len(uid) <= _MAX_ID and uid.isascii() and uid.isprintable()
