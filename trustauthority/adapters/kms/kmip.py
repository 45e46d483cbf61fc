"""A KEK in a KMS that speaks KMIP.

Stage: adapter, run in the key room's child only: the KEK comes out of the KMS in the clear (Get), as
KMIP is used in the world. Trusts the KMS to keep keys, and nothing on the network: TLS 1.2 or newer,
both sides with certificates, the server's host name checked (PyKMIP does not check it). Guarantees:
a KEK is fetched for each use and never kept here; every failure is KmsUnavailable with words of our
own, for what a peer or a library says about an answer may contain the answer.
Source: KMIP 1.4 (Create 4.1, Activate 4.19, Get 4.11, Get Attributes 4.12, Query 4.25).
"""

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kmip.core import enums
from kmip.pie.client import ProxyKmipClient
from kmip.pie.exceptions import KmipOperationFailure
from kmip.pie.objects import SymmetricKey
from kmip.services.kmip_client import KMIPProxy

from trustauthority.adapters.kms.blob import Blob, WrapAlgorithm, bound, read_blob
from trustauthority.adapters.kms.envelope import KEK_BYTES, NONCE_BYTES, seal, unseal, wipe
from trustauthority.adapters.kms.port import outage
from trustauthority.adapters.kms.secret_file import read_secret
from trustauthority.adapters.kms.settings import KmipSettings
from trustauthority.errors import InsecureFile, KmsUnavailable
from trustauthority.model.kms import HealthState, KmsHealth, ProviderKind

_VERSIONS = {
    "1.2": enums.KMIPVersion.KMIP_1_2,
    "1.3": enums.KMIPVersion.KMIP_1_3,
    "1.4": enums.KMIPVersion.KMIP_1_4,
}
_KIND = ProviderKind.KMIP
_GCM = WrapAlgorithm.AES_256_GCM
_MAX_ID = 128
_MAX_VENDOR = 160


class KmipKms:
    """One KMIP server. Each call is one connection: PyKMIP's clients are not thread-safe."""

    def __init__(self, settings: KmipSettings) -> None:
        self._settings = settings
        self._name = f"{settings.host}:{settings.port}"

    def create_kek(self, name: str) -> str:
        """Let the KMS make an AES-256 key and activate it.

        Returns: the id under which it is fetched. The KMS takes a name twice, so only ids count.

        Raises:
            KmsUnavailable: no key was made, or one that is not active and never used.
        """
        masks = [enums.CryptographicUsageMask.ENCRYPT, enums.CryptographicUsageMask.DECRYPT]
        with self._session() as client:
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

    def get_kek(self, uid: str) -> bytearray:
        """Fetch a KEK; the caller wipes it.

        Raises:
            KmsUnavailable: the KMS does not answer, the key is not active (the message names its
                state), or the answer is not an AES-256 key.
        """
        if not _is_id(uid):
            raise KmsUnavailable("this is no id of a KEK")
        with self._session() as client:
            state = _state(client, uid)
            if state is not enums.State.ACTIVE:
                found = state.name.lower().replace("_", "-")
                raise KmsUnavailable(
                    f"KEK {uid} is {found} in the KMS, not active", kek=uid, state=found
                )
            answer = client.get(uid)
        return _aes_256(answer)

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

    def health(self) -> KmsHealth:
        """Whether the KMS answers us, and who it says it is or what is wrong."""
        try:
            with self._session() as client:
                functions = [enums.QueryFunction.QUERY_SERVER_INFORMATION]
                answer = client.proxy.query(query_functions=functions)
                if answer.result_status.value is not enums.ResultStatus.SUCCESS:
                    raise KmsUnavailable(f"KMS {self._name} refuses to be asked")
                vendor = str(answer.vendor_identification)
        except KmsUnavailable as failure:
            return KmsHealth(state=HealthState.ERROR, detail=failure.message, kind=_KIND)
        said = "".join(c for c in vendor if c.isprintable())[:_MAX_VENDOR]
        detail = f"KMS {self._name} answers KMIP {self._settings.version}: {said}"
        return KmsHealth(state=HealthState.OK, detail=detail, kind=_KIND)

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """One connection; everything that goes wrong in it comes out as KmsUnavailable."""
        client: Any = None
        try:
            client = self._client()
            client.open()
            yield client
        except KmsUnavailable:
            raise
        except Exception as failure:  # noqa: BLE001  foreign text may quote an answer: none passes
            raise self._unavailable(failure) from None
        finally:
            if client is not None:
                client.proxy.close()

    def _client(self) -> ProxyKmipClient:
        settings = self._settings
        proxy = _TlsProxy(settings, self._tls())
        # an empty configuration file, or PyKMIP would read the one in somebody's home folder
        client = ProxyKmipClient(
            hostname=settings.host, port=settings.port, config_file="/dev/null"
        )
        client.proxy = proxy
        return client

    def _tls(self) -> ssl.SSLContext:
        settings = self._settings
        read_secret(settings.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(settings.ca)
        context.load_cert_chain(settings.certificate, settings.key)
        return context

    def _unavailable(self, failure: Exception) -> KmsUnavailable:
        message = f"KMS {self._name} {_explain(failure)}"
        return KmsUnavailable(message) if _is_refusal(failure) else outage(message)


class _TlsProxy(KMIPProxy):  # type: ignore[misc]  # PyKMIP has no types
    """PyKMIP's connection with the host name checked, our timeout, and an orderly end."""

    def __init__(self, settings: KmipSettings, context: ssl.SSLContext) -> None:
        super().__init__(
            host=settings.host,
            port=settings.port,
            config_file="/dev/null",
            kmip_version=_VERSIONS[settings.version],
        )
        self._context = context
        self._limit = settings.timeout_s

    def _create_socket(self, sock: socket.socket) -> None:
        sock.settimeout(self._limit)
        self.socket = self._context.wrap_socket(sock, server_hostname=self.host)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()


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


def _aes_256(answer: object) -> bytearray:
    if (
        not isinstance(answer, SymmetricKey)
        or answer.cryptographic_algorithm is not enums.CryptographicAlgorithm.AES
        or answer.cryptographic_length != 8 * KEK_BYTES
        or answer.key_format_type is not enums.KeyFormatType.RAW
        or answer.key_wrapping_data
        or len(answer.value) != KEK_BYTES
    ):
        raise KmsUnavailable("the KMS answered with something else than an AES-256 key")
    return bytearray(answer.value)


def _is_refusal(failure: Exception) -> bool:
    """Whether the KMS is there and said no, or we could not ask."""
    return isinstance(failure, KmipOperationFailure | InsecureFile)


def _explain(failure: Exception) -> str:
    """What happened, without any text that a peer chose."""
    match failure:
        case InsecureFile():
            return "can't be asked: the private key of our client certificate is open to others"
        case KmipOperationFailure(reason=enums.ResultReason() as reason):
            return f"refused: {reason.name.lower().replace('_', ' ')}"
        case ssl.SSLCertVerificationError():
            return f"showed a certificate that we do not accept: {failure.verify_message}"
        case ssl.SSLError():
            return f"and we agree on no TLS connection: {failure.reason or 'it was cut'}"
        case OSError() | EOFError():
            return _explain_connection(failure)
        case _:
            return f"answered with what can't be read ({type(failure).__name__})"


def _explain_connection(failure: OSError | EOFError) -> str:
    match failure:
        case TimeoutError():
            return "did not answer in time"
        case ConnectionRefusedError():
            return "refuses connections: is it running?"
        case ConnectionError() | EOFError():
            return "closed the connection instead of answering"
        case socket.gaierror():
            return "has a name that does not resolve"
        case FileNotFoundError() | PermissionError():
            return "can't be asked: a certificate or key file is missing or unreadable"
        case _:
            return f"can't be reached ({type(failure).__name__})"


def _is_id(uid: object) -> bool:
    return isinstance(uid, str) and 0 < len(uid) <= _MAX_ID and uid.isascii() and uid.isprintable()
