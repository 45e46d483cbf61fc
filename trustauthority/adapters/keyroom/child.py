"""The only process in which KEKs and VM keys are in the clear; it handles a batch and is ended.

Stage: adapter, started by ``room`` as ``python -I -m``, never imported by it. Trusts its parent's
orders: the decision is made and audited. Guarantees that what it writes is a wrapped key, a signed
grant, an id of a KEK or a sentence: no plaintext has a way out, not in an error either. Keys are
wiped where Python lets us; what the libraries copied ends with the process. Does not decide.
"""

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from trustauthority.adapters.keyroom.confine import confine, die_after
from trustauthority.adapters.keyroom.frames import (
    HEADER,
    decode_body,
    encode_frame,
    frame_length,
    order_from_json,
    provider_from_json,
)
from trustauthority.adapters.kms.envelope import (
    NONCE_BYTES,
    PASSPHRASE_ENTROPY,
    passphrase,
    unwrap_vm_key,
    wipe,
    wrap_vm_key,
)
from trustauthority.adapters.kms.kmip import KmipKms
from trustauthority.adapters.kms.secret_file import read_secret
from trustauthority.codec.tpm_public import decode_public
from trustauthority.errors import InsecureFile, KmsUnavailable, TrustAuthorityError
from trustauthority.keyrelease.wrap import GRANT_ENTROPY, build_key_grant

_RELEASE_KEY_UNUSABLE = "the key room can't use its release key; its own log says why"


class Room:
    """Answers orders, one at a time."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self._release_key = Path(configuration["release_key"])
        self._kill_after_s = float(configuration["kill_after_s"])
        self._kms = {
            name: KmipKms(provider_from_json(kms))
            for name, kms in configuration["providers"].items()
        }
        self._saw_a_key = False
        self._orders: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
            "create_kek": self._create_kek,
            "create_key": self._create_key,
            "release": self._release,
            "health": self._health,
        }

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one order; a failure is a sentence without anything secret."""
        try:
            return {"ok": self._orders[message["order"]](message)}
        except TrustAuthorityError as failure:
            return {"error": failure.message}
        except Exception as failure:  # noqa: BLE001  foreign text may hold a key: the type must do
            return {"error": f"the key room failed ({type(failure).__name__}); nothing left it"}

    def _create_kek(self, message: Mapping[str, Any]) -> str:
        return self._kms[message["provider"]].create_kek(f"ta-kek-{message['provider']}")

    def _create_key(self, message: Mapping[str, Any]) -> str:
        kek = self._kek(message["provider"], message["kek_id"])
        entropy = bytearray(os.urandom(PASSPHRASE_ENTROPY))
        vm_key = passphrase(entropy)
        try:
            aad = bytes.fromhex(message["aad"])
            return wrap_vm_key(kek, vm_key, aad, os.urandom(NONCE_BYTES)).hex()
        finally:
            for secret in (kek, entropy, vm_key):
                wipe(secret)

    def _release(self, message: Mapping[str, Any]) -> str:
        order = order_from_json(message["release"])
        release_key = _load_release_key(self._release_key)
        storage = decode_public(order.storage_public)
        kek = self._kek(order.provider, order.kek_id)
        vm_key = bytearray()
        try:
            vm_key = unwrap_vm_key(kek, order.wrapped, order.aad)
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
            wipe(kek)
            wipe(vm_key)
        return grant.wire.hex()

    def _health(self, message: Mapping[str, Any]) -> str:
        _load_release_key(self._release_key)
        answers, detail = self._kms[message["provider"]].health()
        if not answers:
            raise KmsUnavailable(detail)
        return detail

    def _kek(self, provider: str, kek_id: str) -> bytearray:
        if not self._saw_a_key:  # keys do not outlive the parent's plan, even if it forgets us
            self._saw_a_key = True
            die_after(self._kill_after_s)
        return self._kms[provider].get_kek(kek_id)


def _load_release_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_secret(path), password=None)
    except (OSError, ValueError, TypeError, InsecureFile) as failure:
        # the path is for those who run the authority, not for the hosts that get our answer
        detail = failure.message if isinstance(failure, InsecureFile) else type(failure).__name__
        _log(f"release key {path}: {detail}")
        raise KmsUnavailable(_RELEASE_KEY_UNUSABLE) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        _log(f"release key {path}: not an elliptic curve key")
        raise KmsUnavailable(_RELEASE_KEY_UNUSABLE)
    return key


def serve(orders: BinaryIO, replies: BinaryIO) -> None:
    """Answer frames until the parent closes its end; the first one is the configuration."""
    room: Room | None = None
    while header := orders.read(HEADER):
        message = decode_body(orders.read(frame_length(header)))
        if room is None:
            room = Room(message["configure"])
            reply: Mapping[str, Any] = {"ok": "ready"}
        else:
            reply = room.answer(message)
        replies.write(encode_frame(reply))
        replies.flush()


def main() -> int:
    """Confine this process, then serve on standard input and output."""
    confine()
    warnings.simplefilter("ignore")
    # what a library prints must not get into the answers
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(sys.stdin.buffer, replies)
    except Exception as failure:  # noqa: BLE001  a traceback's message may hold what was read
        _log(f"ended by {type(failure).__name__}")
        return 1
    return 0


def _log(line: str) -> None:
    sys.stderr.write(f"key room: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)  # PyKMIP's DEBUG lines are the bytes of answers
    sys.exit(main())
