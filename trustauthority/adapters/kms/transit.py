"""A KEK in the transit engine of Vault or OpenBao, which unwraps and never gives the KEK out.

Stage: adapter, run in the key room's child only. Trusts nothing on the network: TLS 1.3, the server
checked by name against one CA, no redirects, no proxy. We log in with a client certificate (or a token
from a private file) when a child first needs it. Guarantees: only one-time keys are sent, bound to the
AAD by the engine (``associated_data``) and by our own layer; a KEK id names one version of one key.
Source: the HTTP API of OpenBao 2.x and Vault 1.13 or newer (transit, auth/cert, sys/health).
"""

import base64
import binascii
import re
import secrets
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

import hvac
import requests
from hvac import exceptions as errors
from requests.adapters import HTTPAdapter

from trustauthority.adapters.kms.blob import Blob, WrapAlgorithm, bound, read_blob
from trustauthority.adapters.kms.credentials import (
    DAY_MS,
    WARN_CERTIFICATE_MS,
    certificate_end_ms,
    client_tls,
    read_word,
    server_tls,
    with_expiry,
    with_skew,
)
from trustauthority.adapters.kms.envelope import KEK_BYTES, seal_in_two_layers, unseal_in_two_layers
from trustauthority.adapters.kms.settings import TransitSettings
from trustauthority.adapters.kms.trouble import REFUSED_LOGIN, Trouble, refused, trouble_of
from trustauthority.errors import KmsUnavailable
from trustauthority.model.kms import HealthState, KmsHealth, ProviderKind

_KIND = ProviderKind.TRANSIT
_ALGORITHM = WrapAlgorithm.TRANSIT
_WARN_TOKEN_MS = 7 * DAY_MS
_ID = re.compile(r"(\w[\w.-]{0,99}):([1-9]\d{0,8})", re.ASCII)
_CIPHERTEXT = re.compile(r"vault:v(\d{1,9}):[A-Za-z0-9+/=]{1,1500}")
Answer = TypeVar("Answer")


class TransitKms:
    """A transit engine, logged in at first use."""

    def __init__(
        self,
        settings: TransitSettings,
        *,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._name = settings.url.removeprefix("https://")
        self._client: Any = None

    def create_kek(self, name: str) -> str:
        """Let the engine make an AES-256 key; the id is NAME-RANDOM:1, its first version."""
        key = f"{name}-{secrets.token_hex(4)}"
        self._ask(
            lambda client: client.write(
                self._path("keys", key), type="aes256-gcm96", exportable=False
            )
        )
        return f"{key}:{self._latest(key)}"

    def rotate(self, kek_id: str, name: str) -> str:  # noqa: ARG002  the key keeps its name
        """Let the engine add a version to the key, and return the id of that."""
        key, _ = _split(kek_id)
        self._ask(lambda client: client.write(self._path("keys", key, "rotate")))
        return f"{key}:{self._latest(key)}"

    def wrap(self, kek_id: str, vm_key: bytearray, aad: bytes) -> bytes:
        """Encrypt under a one-time key that the engine wraps."""
        key, version = _split(kek_id)
        sealed_for = bound(_KIND, _ALGORITHM, aad)

        def wrap_key(one_time: bytearray) -> bytes:
            answer = self._ask(
                lambda client: client.write(
                    self._path("encrypt", key),
                    plaintext=base64.b64encode(one_time).decode(),
                    associated_data=base64.b64encode(sealed_for).decode(),
                    key_version=version,
                )["data"]["ciphertext"]
            )
            return self._checked(answer, version).encode()

        body = seal_in_two_layers(vm_key, sealed_for, wrap_key)
        return Blob(kind=_KIND, algorithm=_ALGORITHM, body=body).encode()

    def unwrap(self, kek_id: str, wrapped: bytes, aad: bytes) -> bytearray:
        """Let the engine unwrap the one-time key, and decrypt with that."""
        key, version = _split(kek_id)
        blob = read_blob(wrapped, _KIND, (_ALGORITHM,))
        sealed_for = bound(_KIND, _ALGORITHM, aad)

        def unwrap_key(wrapped_key: bytes) -> bytearray:
            ciphertext = self._checked(wrapped_key.decode("ascii", "replace"), version)
            answer = self._ask(
                lambda client: client.write(
                    self._path("decrypt", key),
                    ciphertext=ciphertext,
                    associated_data=base64.b64encode(sealed_for).decode(),
                )["data"]["plaintext"]
            )
            return _one_time_key(answer)

        return unseal_in_two_layers(blob.body, sealed_for, unwrap_key)

    def health(self) -> KmsHealth:
        """Whether the server is unsealed and lets us log in, and when our credential ends."""
        self.close()
        try:
            with closing(self._logged_out().adapter) as asking:
                said = hvac.api.SystemBackend(asking).read_health_status(method="GET")
            said = said if isinstance(said, dict) else said.json()
            sealed, server_ms = bool(said["sealed"]), int(said["server_time_utc"]) * 1000
            version = _printable(said["version"])
        except Exception as failure:  # noqa: BLE001  foreign text may quote an answer: none passes
            return self._unwell(_trouble(failure))
        if sealed:
            return self._unwell(replace(_SEALED_UP, trusts_server=True))
        try:
            ends_ms = _end_of_token(self._open().auth.token.lookup_self()["data"])
        except Exception as failure:  # noqa: BLE001  as above
            return self._unwell(_trouble(failure))
        health = KmsHealth(
            state=HealthState.OK,
            detail=f"KMS {self._name} answers: transit engine {self._settings.mount}, {version}",
            kind=_KIND,
            trusts_server=True,
            trusted_by_server=True,
        )
        health = with_skew(health, server_ms=server_ms, now_ms=self._now_ms())
        return self._with_end_of_credential(health, ends_ms)

    def close(self) -> None:
        """End the connections and forget the login."""
        if self._client is not None:
            self._client.adapter.close()
            self._client = None

    def _with_end_of_credential(self, health: KmsHealth, token_ms: int | None) -> KmsHealth:
        """The certificate's end, or the configured token's; that of a login is nobody's concern."""
        settings = self._settings
        if settings.certificate is None:
            return with_expiry(
                health,
                what=f"the token of {settings.token}",
                end_ms=token_ms,
                now_ms=self._now_ms(),
                warn_ms=_WARN_TOKEN_MS,
            )
        return with_expiry(
            health,
            what=f"our client certificate {settings.certificate}",
            end_ms=certificate_end_ms(settings.certificate),
            now_ms=self._now_ms(),
            warn_ms=WARN_CERTIFICATE_MS,
        )

    def _unwell(self, trouble: Trouble) -> KmsHealth:
        health = KmsHealth(
            state=HealthState.ERROR,
            detail=f"KMS {self._name} {trouble.says}",
            kind=_KIND,
            trusts_server=trouble.trusts_server,
            trusted_by_server=trouble.trusted_by_server,
        )
        return self._with_end_of_credential(health, None)

    # --- requests ------------------------------------------------------------------------------

    def _path(self, *parts: str) -> str:
        return "/".join((self._settings.mount, *parts))

    def _latest(self, key: str) -> int:
        answer = self._ask(lambda client: client.read(self._path("keys", key)))
        try:
            data = answer["data"]
            version, kind, exportable = data["latest_version"], data["type"], data["exportable"]
        except (TypeError, KeyError):
            raise KmsUnavailable("the KMS does not tell what its new key is") from None
        if kind != "aes256-gcm96" or exportable is not False or not isinstance(version, int):
            raise KmsUnavailable("the key of the KMS is no AES-256 key that stays in it")
        return version

    def _checked(self, ciphertext: object, version: int) -> str:
        """A ciphertext of the expected version of the key."""
        match = _CIPHERTEXT.fullmatch(ciphertext) if isinstance(ciphertext, str) else None
        if match is None or int(match[1]) != version:
            raise KmsUnavailable("the one-time key is not wrapped by this version of the KEK")
        return match[0]

    def _ask(self, operation: Callable[[Any], Answer]) -> Answer:
        """Ask, logged in; a login that ended since is repeated once."""
        try:
            fresh = self._client is None
            client = self._open()
            try:
                return operation(client)
            except (errors.Forbidden, errors.Unauthorized):
                if fresh:
                    raise
                self.close()
                return operation(self._open())
        except KmsUnavailable:
            raise
        except Exception as failure:  # noqa: BLE001  foreign text may quote an answer: none passes
            error = _trouble(failure).error(self._name)
        raise error  # outside, so that it does not carry the other one along

    def _open(self) -> Any:
        if self._client is None:
            self._client = self._logged_in()
        return self._client

    def _logged_in(self) -> Any:
        """A client with a token; a login that fails leaves no connection behind."""
        client = self._logged_out()
        try:
            self._log_in(client)
        except BaseException:
            client.adapter.close()
            raise
        return client

    def _log_in(self, client: Any) -> None:
        settings = self._settings
        if settings.token is not None:
            client.token = read_word(settings.token)
            return
        try:
            login = f"/v1/auth/{settings.auth_mount}/login"
            client.adapter.login(login, json={"name": settings.role} if settings.role else {})
        except (errors.InvalidRequest, errors.Forbidden, errors.Unauthorized):
            raise REFUSED_LOGIN.error(self._name) from None
        except errors.InternalServerError:  # OpenBao's answer to a certificate that has ended
            if not self._certificate_ended():
                raise
            raise REFUSED_LOGIN.error(self._name) from None

    def _certificate_ended(self) -> bool:
        certificate = self._settings.certificate
        end_ms = None if certificate is None else certificate_end_ms(certificate)
        return end_ms is not None and end_ms <= self._now_ms()

    def _logged_out(self) -> Any:
        settings = self._settings
        minimum = ssl.TLSVersion.TLSv1_3
        if settings.certificate is None or settings.key is None:
            context = server_tls(settings.ca, minimum=minimum)
        else:
            context = client_tls(settings.ca, settings.certificate, settings.key, minimum=minimum)
        session = requests.Session()
        session.trust_env = False
        session.mount("https://", _TlsAdapter(context))
        return hvac.Client(
            url=settings.url,
            verify=str(settings.ca),
            timeout=settings.timeout_s,
            allow_redirects=False,  # the login's token must not follow one
            session=session,
            namespace=settings.namespace or None,
        )


class _TlsAdapter(HTTPAdapter):
    """requests' connections, with our TLS context."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options, ssl_context=self._context)


_SEALED_UP = Trouble(says="is sealed: unseal it")


_NOT_ALLOWED = refused("does not allow that: look at the policy of our role, and its log")
_TROUBLES: tuple[tuple[type[Exception], Trouble], ...] = (
    (KmsUnavailable, REFUSED_LOGIN),  # nothing but the login raises it where this is asked
    (errors.VaultDown, _SEALED_UP),
    (errors.Forbidden, _NOT_ALLOWED),
    (errors.Unauthorized, _NOT_ALLOWED),
    (errors.InvalidPath, refused("has no such key or engine")),
    (
        errors.InvalidRequest,
        refused(
            "does not open this VM key: wrong key, another VM, a changed blob or a version of the"
            " key that was retired"
        ),
    ),
)


def _trouble(failure: Exception) -> Trouble:
    for kind, trouble in _TROUBLES:
        if isinstance(failure, kind):
            return trouble
    if isinstance(failure, errors.VaultError):
        return Trouble(says=f"failed ({type(failure).__name__})")
    return trouble_of(failure)


def _one_time_key(answer: object) -> bytearray:
    try:
        key = base64.b64decode(answer, validate=True) if isinstance(answer, str) else b""
    except binascii.Error:
        key = b""
    if len(key) != KEK_BYTES:
        raise KmsUnavailable("the KMS answered with something else than a one-time key")
    return bytearray(key)


def _end_of_token(token: Any) -> int | None:
    """Unix time at which a token ends; None for one that does not."""
    text = token.get("expire_time")
    return None if not text else int(datetime.fromisoformat(text).timestamp() * 1000)


def _split(kek_id: str) -> tuple[str, int]:
    match = _ID.fullmatch(kek_id)
    if match is None:
        raise KmsUnavailable("this is no id of a KEK")
    return match[1], int(match[2])


def _printable(text: object) -> str:
    return "".join(c for c in str(text) if c.isprintable())[:64]
