"""A KEK in a token behind PKCS#11: an HSM, which unwraps and never gives the KEK out.

Stage: adapter, run in the key room's child only, where it loads the vendor's library. Trusts the
library with this process, as everybody must who uses one. Guarantees: KEKs are made and used only as
sensitive, not extractable and for one mechanism; one login per process and one lock round every call
(the library is initialised without locking, and a second login fails); after a fork the child opens
anew; the PIN comes from a private file and is not tried when the token says that it is the last try.
Source: PKCS#11 v2.40 (C_Login 5.6, AES-GCM 2.12, AES key wrap 2.14 of the mechanisms).
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, TokenFlag
from pkcs11 import exceptions as errors

from trustauthority.adapters.kms.blob import Blob, WrapAlgorithm, bound, read_blob
from trustauthority.adapters.kms.credentials import read_word
from trustauthority.adapters.kms.envelope import (
    KEK_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    seal_in_two_layers,
    unseal_in_two_layers,
)
from trustauthority.adapters.kms.settings import Pkcs11Settings
from trustauthority.adapters.kms.trouble import Trouble, ours, refused, trouble_of
from trustauthority.errors import KmsUnavailable
from trustauthority.model.kms import HealthState, KmsHealth, ProviderKind

_KIND = ProviderKind.PKCS11
_ALGORITHMS = {
    "aes-gcm": WrapAlgorithm.TOKEN_GCM,
    "aes-key-wrap": WrapAlgorithm.TOKEN_KEY_WRAP,
}
_MECHANISMS = {
    WrapAlgorithm.TOKEN_GCM: Mechanism.AES_GCM,
    WrapAlgorithm.TOKEN_KEY_WRAP: Mechanism.AES_KEY_WRAP,
}
_ID_BYTES = 16
_DOES_NOT_OPEN = "does not open this VM key: wrong key"
Answer = TypeVar("Answer")


class Pkcs11Kms:
    """A token. Its login is the process's: it is shared with other providers on the same token."""

    def __init__(self, settings: Pkcs11Settings) -> None:
        self._settings = settings
        self._algorithm = _ALGORITHMS[settings.mechanism]
        self._module = _MODULES.setdefault(settings.module, _Module(settings.module))

    def create_kek(self, name: str) -> str:
        """Let the token make an AES-256 key that never leaves it; its CKA_ID, random, is the id."""
        kek_id = os.urandom(_ID_BYTES)
        wraps = self._algorithm is WrapAlgorithm.TOKEN_KEY_WRAP
        template = {
            **_KEK,
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.MODIFIABLE: False,
            Attribute.WRAP: wraps,
            Attribute.UNWRAP: wraps,
            Attribute.ENCRYPT: not wraps,
            Attribute.DECRYPT: not wraps,
        }

        def create(session: Any) -> str:
            session.generate_key(
                KeyType.AES, 8 * KEK_BYTES, label=name, id=kek_id, store=True, template=template
            )
            _kek(session, kek_id)  # found again, and what we asked for
            return kek_id.hex()

        return self._ask(create)

    def rotate(self, kek_id: str, name: str) -> str:  # noqa: ARG002  nothing links two keys
        """Make another KEK: a token's key has no versions."""
        return self.create_kek(name)

    def wrap(self, kek_id: str, vm_key: bytearray, aad: bytes) -> bytes:
        """Encrypt under a one-time key that the token wraps."""
        sealed_for = bound(_KIND, self._algorithm, aad)
        body = self._ask(
            lambda session: seal_in_two_layers(
                vm_key,
                sealed_for,
                lambda one_time: self._wrap(session, _id(kek_id), one_time, sealed_for),
            )
        )
        return Blob(kind=_KIND, algorithm=self._algorithm, body=body).encode()

    def unwrap(self, kek_id: str, wrapped: bytes, aad: bytes) -> bytearray:
        """Let the token unwrap the one-time key, and decrypt with that."""
        blob = read_blob(wrapped, _KIND, tuple(_MECHANISMS))
        sealed_for = bound(_KIND, blob.algorithm, aad)
        return self._ask(
            lambda session: unseal_in_two_layers(
                blob.body,
                sealed_for,
                lambda key: self._unwrap(session, blob.algorithm, _id(kek_id), key, sealed_for),
            )
        )

    def health(self) -> KmsHealth:
        """Whether the token is there, takes our PIN and has the mechanism."""
        try:
            detail, state = self._ask(self._introduction)
        except KmsUnavailable as failure:
            return KmsHealth(
                state=HealthState.ERROR,
                detail=failure.message,
                kind=_KIND,
                trusted_by_server=False if "pin" in failure.metadata else None,
            )
        return KmsHealth(
            state=state,
            detail=detail,
            kind=_KIND,
            trusts_server=True if self._settings.serial else None,
            trusted_by_server=True,
        )

    def close(self) -> None:
        """Log out, which ends the login of other providers on this module too."""
        with self._module.lock:
            self._module.forget()

    # --- in the token --------------------------------------------------------------------------

    def _wrap(self, session: Any, kek_id: bytes, one_time: bytearray, aad: bytes) -> bytes:
        kek = _kek(session, kek_id)
        if self._algorithm is WrapAlgorithm.TOKEN_GCM:
            nonce = os.urandom(NONCE_BYTES)
            sealed = kek.encrypt(
                bytes(one_time), mechanism=Mechanism.AES_GCM, mechanism_param=_gcm(nonce, aad)
            )
            return nonce + bytes(sealed)
        guest = session.create_object({**_GUEST, Attribute.VALUE: bytes(one_time)})
        try:
            return bytes(kek.wrap_key(guest, mechanism=Mechanism.AES_KEY_WRAP))
        finally:
            guest.destroy()

    def _unwrap(
        self, session: Any, algorithm: WrapAlgorithm, kek_id: bytes, wrapped: bytes, aad: bytes
    ) -> bytearray:
        kek = _kek(session, kek_id)
        try:
            if algorithm is WrapAlgorithm.TOKEN_GCM:
                nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
                return bytearray(
                    kek.decrypt(
                        sealed, mechanism=Mechanism.AES_GCM, mechanism_param=_gcm(nonce, aad)
                    )
                )
            guest = kek.unwrap_key(
                ObjectClass.SECRET_KEY,
                KeyType.AES,
                wrapped,
                mechanism=Mechanism.AES_KEY_WRAP,
                template=_GUEST_TEMPLATE,
            )
            try:
                return bytearray(guest[Attribute.VALUE])
            finally:
                guest.destroy()
        except _NOT_OURS:
            raise refused(_DOES_NOT_OPEN).error(self._name) from None

    def _introduction(self, session: Any) -> tuple[str, HealthState]:
        token = session.token.slot.get_token()  # its flags of now, not of our login
        mechanism = _MECHANISMS[self._algorithm]
        if mechanism not in token.slot.get_mechanisms():
            raise refused(f"has no {mechanism.name}: set another mechanism").error(self._name)
        parts = (token.manufacturer_id, token.model, token.serial)
        said = " ".join(_printable(part) for part in parts)
        detail = f"KMS {self._name} answers: {said}, {self._settings.mechanism}"
        if token.flags & _AT_ITS_END:
            raise self._error(_PIN_AT_ITS_END)
        if token.flags & TokenFlag.USER_PIN_COUNT_LOW:
            return f"a wrong PIN was tried since the last login; {detail}", HealthState.WARNING
        return detail, HealthState.OK

    # --- one session, one lock -----------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"token {self._settings.token!r}"

    def _ask(self, operation: Callable[[Any], Answer]) -> Answer:
        """Carry out an operation in the session; whatever goes wrong is KmsUnavailable."""
        error = ours("was not asked").error(self._name)
        with self._module.lock:
            for left in reversed(range(_TRIES)):
                try:
                    return operation(self._open())
                except KmsUnavailable:
                    raise
                except Exception as failure:  # noqa: BLE001  foreign text may quote data: none passes
                    trouble = _trouble(failure)
                    if trouble.outage:
                        self._module.forget()
                    error = self._error(trouble)
                    passing = isinstance(failure, _MAY_PASS)
                if not (passing and left):
                    break
                time.sleep(_PAUSE_S)
        raise error  # outside, so that it does not carry the other one along

    def _open(self) -> Any:
        """The session of this token; the caller has the lock."""
        settings, module = self._settings, self._module
        login = hashlib.sha256(read_word(settings.pin).encode()).digest()
        library = module.library(settings.environment)
        token = _only(list(library.get_tokens(token_label=settings.token)), self._name)
        serial = _printable(token.serial)
        if settings.serial not in ("", serial):
            raise refused("has another serial number than the settings say").error(self._name)
        if module.logins.get(serial) != login:  # none yet, or with another PIN: log out before
            module.logout(serial)
        if serial not in module.sessions:
            if token.flags & _AT_ITS_END:
                raise self._error(_PIN_AT_ITS_END)
            module.sessions[serial] = token.open(rw=True, user_pin=read_word(settings.pin))
            module.logins[serial] = login
        return module.sessions[serial]

    def _error(self, trouble: Trouble) -> KmsUnavailable:
        error = trouble.error(self._name)
        if trouble.trusted_by_server is False:
            error.metadata["pin"] = "refused"
        return error


class _Module:
    """A vendor's library in this process: one lock for it, one login per token."""

    def __init__(self, path: Path) -> None:
        self.lock = threading.RLock()
        self.sessions: dict[str, Any] = {}
        """By the serial number of the token."""
        self.logins: dict[str, bytes] = {}
        """Hash of the PIN that each session was opened with."""
        self._path = path
        self._process = 0

    def library(self, environment: Mapping[str, str]) -> Any:
        """The library, initialised in this very process: a fork inherits one that is not."""
        if self._process != os.getpid():
            os.environ.update(environment)
            self.sessions.clear()
            self.logins.clear()
            library = pkcs11.lib(str(self._path))
            library.reinitialize()
            self._process = os.getpid()
        return pkcs11.lib(str(self._path))

    def forget(self) -> None:
        """Something broke: close all sessions, which logs out, and start anew with the next call."""
        for serial in tuple(self.sessions):
            self.logout(serial)
        self._process = 0

    def logout(self, serial: str) -> None:
        """Close a token's session, if there is one."""
        session = self.sessions.pop(serial, None)
        self.logins.pop(serial, None)
        if session is not None:
            with suppress(errors.PKCS11Error):
                session.close()


_MODULES: dict[Path, _Module] = {}


_KEK: Mapping[Attribute, object] = {
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
}
"""What makes a KEK one."""
_GUEST_TEMPLATE: Mapping[Attribute, object] = {
    Attribute.TOKEN: False,
    Attribute.SENSITIVE: False,
    Attribute.EXTRACTABLE: True,
}
_GUEST: Mapping[Attribute, object] = {
    Attribute.CLASS: ObjectClass.SECRET_KEY,
    Attribute.KEY_TYPE: KeyType.AES,
    **_GUEST_TEMPLATE,
}
"""A one-time key, for the time of its wrapping; it is ours and in the clear here anyway."""

_MAY_PASS = (errors.GeneralError, errors.NoSuchToken, errors.TokenNotPresent)
"""What a library that keeps tokens in files says to who reads them while somebody else writes."""
_TRIES, _PAUSE_S = 3, 0.05
_AT_ITS_END = TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_LOCKED
_PIN_AT_ITS_END = Trouble(
    says="has its PIN locked or at the last try, so it is not tried: log in by hand, check the file",
    outage=False,
    trusted_by_server=False,
)
_NOT_OURS = (
    errors.GeneralError,  # SoftHSM2's answer to a wrong tag
    errors.EncryptedDataInvalid,
    errors.EncryptedDataLenRange,
    errors.WrappedKeyInvalid,
    errors.WrappedKeyLenRange,
    errors.FunctionFailed,
)
_TROUBLES: tuple[tuple[tuple[type[Exception], ...], Trouble], ...] = (
    (
        (errors.PinIncorrect, errors.PinExpired, errors.PinInvalid, errors.PinLenRange),
        Trouble(says="does not take our PIN", outage=False, trusted_by_server=False),
    ),
    ((errors.PinLocked,), _PIN_AT_ITS_END),
    ((errors.NoSuchKey,), refused("has no such KEK")),
    ((errors.MultipleObjectsReturned,), refused("has two KEKs with one id")),
    (
        (errors.MechanismInvalid, errors.MechanismParamInvalid, errors.FunctionNotSupported),
        refused("does not offer the mechanism: set another one"),
    ),
    (
        (errors.KeyTypeInconsistent, errors.UnwrappingKeyTypeInconsistent, errors.FunctionRejected),
        refused("does not let this KEK be used like that"),
    ),
    (
        (errors.NoSuchToken, errors.TokenNotPresent, errors.TokenNotRecognised),
        Trouble(says="is not there: is the HSM connected, and the label right?"),
    ),
    (
        (errors.AnotherUserAlreadyLoggedIn, errors.UserAlreadyLoggedIn),
        Trouble(says="is in use by another login of this process", outage=False),
    ),
)


def _trouble(failure: Exception) -> Trouble:
    for kinds, trouble in _TROUBLES:
        if isinstance(failure, kinds):
            return trouble
    if isinstance(failure, errors.PKCS11Error):
        return Trouble(says=f"failed ({type(failure).__name__})")
    if isinstance(failure, RuntimeError):  # what python-pkcs11 raises when dlopen fails
        return ours("the module can't be loaded")
    return trouble_of(failure)


def _kek(session: Any, kek_id: bytes) -> Any:
    """The KEK with an id, if it is what we make."""
    found = list(
        session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.ID: kek_id})
    )
    if not found:
        raise errors.NoSuchKey
    if len(found) > 1:
        raise errors.MultipleObjectsReturned
    (kek,) = found
    is_one = kek.key_type is KeyType.AES and kek.key_length == 8 * KEK_BYTES
    if not is_one or any(kek[attribute] != value for attribute, value in _KEK.items()):
        raise KmsUnavailable("the key in the token is no AES-256 key that stays in it")
    return kek


def _only(tokens: list[Any], name: str) -> Any:
    if not tokens:
        raise errors.NoSuchToken
    if len(tokens) > 1:
        raise refused("is there more than once: set its serial number").error(name)
    return tokens[0]


def _gcm(nonce: bytes, aad: bytes) -> Any:
    return pkcs11.GCMParams(nonce, aad, 8 * TAG_BYTES)


def _id(kek_id: str) -> bytes:
    if not re.fullmatch(f"[0-9a-f]{{{2 * _ID_BYTES}}}", kek_id):
        raise KmsUnavailable("this is no id of a KEK")
    return bytes.fromhex(kek_id)


def _printable(text: object) -> str:
    decoded = text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)
    return "".join(c for c in decoded if c.isprintable()).strip()[:64]
