"""What a child of the key room does for each order.

Stage: adapter, in the child only. An order is a function of the keyring and the message; its answer
is text: a wrapped key, a signed grant, an id, a health. Guarantees that plaintext keys are wiped where
Python lets us and are in no answer. A new kind of order is a function here and a row in ``ORDERS``.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from hmac import compare_digest
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from trustauthority.adapters.keyroom.confine import die_after
from trustauthority.adapters.keyroom.frames import (
    health_to_json,
    new_key_to_json,
    order_from_json,
)
from trustauthority.adapters.kms.envelope import PASSPHRASE_ENTROPY, passphrase, wipe
from trustauthority.adapters.kms.escrow import binding_of, load_escrow_key, seal_to_escrow
from trustauthority.adapters.kms.port import Kms
from trustauthority.adapters.kms.providers import open_kms
from trustauthority.adapters.kms.secret_file import read_secret
from trustauthority.adapters.kms.settings import provider_from_json
from trustauthority.codec.tpm_public import decode_public
from trustauthority.errors import InsecureFile, KmsUnavailable, TrustAuthorityError
from trustauthority.keyrelease.escrow import drill_answer
from trustauthority.keyrelease.keyimport import open_import
from trustauthority.keyrelease.wrap import GRANT_ENTROPY, build_key_grant
from trustauthority.model.escrow import EscrowBinding
from trustauthority.model.vm import NewKey

_IMPORT_KEY_UNUSABLE = "the key room can't use its import key; its own log says why"
_RELEASE_KEY_UNUSABLE = "the key room can't use its release key; its own log says why"


class Keyring:
    """The KMSes of the configuration, the release key, and the end of this process."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self._release_key = Path(configuration["release_key"])
        self._import_key = str(configuration.get("import_key", ""))
        self._kill_after_s = float(configuration["kill_after_s"])
        self._settings = {
            name: provider_from_json(kms) for name, kms in configuration["providers"].items()
        }
        self._escrow = configuration["escrow"]
        self._open: dict[str, Kms] = {}
        self._saw_a_key = False
        for name in configuration["warm"]:
            with suppress(TrustAuthorityError):  # the first order will tell
                self.kms(name)

    def kms(self, provider: str) -> Kms:
        """A provider's KMS, for what shows no key."""
        if provider not in self._open:
            self._open[provider] = open_kms(self._settings[provider])
        return self._open[provider]

    def kms_for_keys(self, provider: str) -> Kms:
        """A provider's KMS, for what shows a key: from now on this process has an end."""
        if not self._saw_a_key:  # keys do not outlive the parent's plan, even if it forgets us
            self._saw_a_key = True
            die_after(self._kill_after_s)
        return self.kms(provider)

    def escrowed(self, vm_key: bytes | bytearray, aad: bytes) -> bytes:
        """A VM key sealed to the offline escrow key; empty when none was chosen.

        Raises:
            KmsUnavailable: one was chosen and can't be used: then no key is made.
        """
        if self._escrow is None:
            return b""
        try:
            recipient = load_escrow_key(Path(self._escrow["public_key"]), self._escrow["key_id"])
            return seal_to_escrow(vm_key, binding_of(aad, self._escrow["origin"]), recipient)
        except TrustAuthorityError as failure:
            log(failure.message)
            raise KmsUnavailable(
                "the key room can't use its escrow key; its own log says why"
            ) from None

    def binding(self, aad: bytes) -> EscrowBinding:
        """What a key is escrowed as. Raises KmsUnavailable when no escrow key was chosen."""
        if self._escrow is None:
            raise KmsUnavailable("no escrow key was chosen")
        return binding_of(aad, self._escrow["origin"])

    def import_key(self) -> X25519PrivateKey:
        """The key that opens imported passphrases, read anew each time. Raises KmsUnavailable."""
        try:
            key = serialization.load_pem_private_key(
                read_secret(Path(self._import_key)), password=None
            )
        except (OSError, ValueError, TypeError, InsecureFile) as failure:
            said = failure.message if isinstance(failure, InsecureFile) else type(failure).__name__
            log(f"import key {self._import_key or '(none)'}: {said}")
            raise KmsUnavailable(_IMPORT_KEY_UNUSABLE) from None
        if not isinstance(key, X25519PrivateKey):
            log(f"import key {self._import_key}: not an X25519 key")
            raise KmsUnavailable(_IMPORT_KEY_UNUSABLE)
        return key

    def release_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that signs grants, read anew each time. Raises KmsUnavailable."""
        path = self._release_key
        try:
            key = serialization.load_pem_private_key(read_secret(path), password=None)
        except (OSError, ValueError, TypeError, InsecureFile) as failure:
            # the path is for those who run the authority, not for the hosts that get our answer
            said = failure.message if isinstance(failure, InsecureFile) else type(failure).__name__
            log(f"release key {path}: {said}")
            raise KmsUnavailable(_RELEASE_KEY_UNUSABLE) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            log(f"release key {path}: not an elliptic curve key")
            raise KmsUnavailable(_RELEASE_KEY_UNUSABLE)
        return key


def create_kek(keyring: Keyring, message: Mapping[str, Any]) -> str:
    """Let the KMS make a KEK; answers its id."""
    return keyring.kms(message["provider"]).create_kek(_kek_name(message))


def rotate_kek(keyring: Keyring, message: Mapping[str, Any]) -> str:
    """Let new key material follow a KEK; answers the id to wrap under from now on."""
    return keyring.kms(message["provider"]).rotate(message["kek_id"], _kek_name(message))


def create_key(keyring: Keyring, message: Mapping[str, Any]) -> str:
    """Make a VM key; answers JSON of a NewKey: wrapped, and sealed to the escrow key."""
    kms = keyring.kms_for_keys(message["provider"])
    entropy = bytearray(os.urandom(PASSPHRASE_ENTROPY))
    vm_key = passphrase(entropy)
    try:
        return sealed_twice(keyring, kms, message, vm_key)
    finally:
        wipe(entropy)
        wipe(vm_key)


def import_key(keyring: Keyring, message: Mapping[str, Any]) -> str:
    """Open a passphrase that was sealed to the import key; answers JSON of a NewKey, as for a new one."""
    private = keyring.import_key()
    kms = keyring.kms_for_keys(message["provider"])
    vm_key = open_import(bytes.fromhex(message["sealed"]), private, message["vm"])
    try:
        return sealed_twice(keyring, kms, message, vm_key)
    finally:
        wipe(vm_key)


def rewrap(keyring: Keyring, message: Mapping[str, Any]) -> str:
    """Unwrap a VM key and wrap it by another KEK, maybe of another KMS; answers it wrapped, in hex.

    What was wrapped is opened once more before it is answered: a KMS that wraps what it can't open
    would cost the key.
    """
    kms, target = keyring.kms_for_keys(message["provider"]), keyring.kms(message["target"])
    target_kek, target_aad = message["target_kek_id"], bytes.fromhex(message["target_aad"])
    vm_key = kms.unwrap(
        message["kek_id"], bytes.fromhex(message["wrapped"]), bytes.fromhex(message["aad"])
    )
    opened = bytearray()
    try:
        wrapped = target.wrap(target_kek, vm_key, target_aad)
        opened = target.unwrap(target_kek, wrapped, target_aad)
        if not compare_digest(opened, vm_key):
            raise KmsUnavailable("the KMS does not open what it wrapped; the key stays as it was")
    finally:
        wipe(vm_key)
        wipe(opened)
    return wrapped.hex()


def sealed_twice(keyring: Keyring, kms: Kms, message: Mapping[str, Any], vm_key: bytearray) -> str:
    """A key under the KEK that the message names, and to the escrow key; JSON of a NewKey.

    Every key comes into being here: there is none without its escrow where one was chosen.
    """
    aad = bytes.fromhex(message["aad"])
    escrowed = keyring.escrowed(vm_key, aad)
    wrapped = kms.wrap(message["kek_id"], vm_key, aad)
    return json.dumps(new_key_to_json(NewKey(wrapped=wrapped, escrowed=escrowed)))


def escrow(keyring: Keyring, message: Mapping[str, Any]) -> str:
    """Unwrap a VM key and seal it to the escrow key of today; answers it sealed, in hex."""
    vm_key, aad = _unwrapped(keyring, message)
    try:
        return keyring.escrowed(vm_key, aad).hex()
    finally:
        wipe(vm_key)


def answer_drill(keyring: Keyring, message: Mapping[str, Any]) -> str:
    """What a holder of the VM key answers to a drill's challenge, in hex."""
    vm_key, aad = _unwrapped(keyring, message)
    try:
        challenge = bytes.fromhex(message["challenge"])
        return drill_answer(vm_key, keyring.binding(aad), challenge).hex()
    finally:
        wipe(vm_key)


def release(keyring: Keyring, message: Mapping[str, Any]) -> str:
    """Unwrap a VM key for one host; answers a signed KeyGrant, in hex."""
    order = order_from_json(message["release"])
    release_key = keyring.release_key()
    storage = decode_public(order.storage_public)
    vm_key = keyring.kms_for_keys(order.provider).unwrap(order.kek_id, order.wrapped, order.aad)
    try:
        grant = build_key_grant(
            binding=order.binding,
            vm_key=vm_key,
            storage=storage,
            pcrs=order.sealed_pcrs,
            counters=order.counters,
            entropy=os.urandom(GRANT_ENTROPY),
            release_key=release_key,
        )
    finally:
        wipe(vm_key)
    return grant.wire.hex()


def health(keyring: Keyring, message: Mapping[str, Any]) -> str:
    """Whether grants can be signed and the KMS would serve us; answers JSON of a KmsHealth."""
    keyring.release_key()
    return json.dumps(health_to_json(keyring.kms(message["provider"]).health()))


ORDERS: Mapping[str, Callable[[Keyring, Mapping[str, Any]], str]] = {
    "create_kek": create_kek,
    "rotate_kek": rotate_kek,
    "create_key": create_key,
    "import_key": import_key,
    "rewrap": rewrap,
    "escrow": escrow,
    "answer_drill": answer_drill,
    "release": release,
    "health": health,
}


def log(line: str) -> None:
    """A line for those who run the authority."""
    sys.stderr.write(f"key room: {line}\n")
    sys.stderr.flush()


def _unwrapped(keyring: Keyring, message: Mapping[str, Any]) -> tuple[bytearray, bytes]:
    """A stored VM key, which the caller wipes, and its associated data."""
    aad, wrapped = bytes.fromhex(message["aad"]), bytes.fromhex(message["wrapped"])
    kms = keyring.kms_for_keys(message["provider"])
    return kms.unwrap(message["kek_id"], wrapped, aad), aad


def _kek_name(message: Mapping[str, Any]) -> str:
    return f"ta-kek-{message['provider']}"
