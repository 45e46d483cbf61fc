"""A KEK in AWS KMS, which unwraps and never gives the KEK out.

Stage: adapter, run in the key room's child only. Trusts nothing on the network: TLS with the endpoint
checked by name; no configuration of a home folder or of the environment is read. Guarantees: only
one-time keys are sent, with the AAD in the encryption context, where CloudTrail shows it; the state of
a KEK is looked at before each use, and only *Enabled* ones are used; what comes back for another KEK is
refused, and our own layer finds out what an answer should not have opened.
Source: AWS KMS API reference (CreateKey, DescribeKey, Encrypt, Decrypt, ListKeys).
"""

import configparser
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

from trustauthority.adapters.kms.blob import Blob, WrapAlgorithm, bound, header, read_blob
from trustauthority.adapters.kms.credentials import DAY_MS, with_expiry, with_skew
from trustauthority.adapters.kms.envelope import KEK_BYTES, seal_in_two_layers, unseal_in_two_layers
from trustauthority.adapters.kms.secret_file import read_secret
from trustauthority.adapters.kms.settings import AwsSettings
from trustauthority.adapters.kms.trouble import REFUSED_LOGIN, Trouble, refused, trouble_of
from trustauthority.errors import InsecureFile, KmsUnavailable
from trustauthority.model.kms import HealthState, KmsHealth, ProviderKind

_KIND = ProviderKind.AWS
_ALGORITHM = WrapAlgorithm.AWS
_WARN_MS = DAY_MS // 24
"""Temporary credentials live for hours."""
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_NO_CREDENTIALS = {
    "AccessDenied",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_OUTAGES = {
    "DependencyTimeoutException",
    "InternalFailure",
    "KMSInternalException",
    "KeyUnavailableException",
    "ServiceUnavailableException",
    "ThrottlingException",
}
_WRONG = {"InvalidCiphertextException", "IncorrectKeyException"}
Answer = TypeVar("Answer")


class AwsKms:
    """AWS KMS in one region."""

    def __init__(
        self, settings: AwsSettings, *, now_ms: Callable[[], int] = lambda: int(time.time() * 1000)
    ) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._open: tuple[_Credentials, Any] | None = None
        self._name = settings.endpoint.removeprefix("https://") or f"aws {settings.region}"

    def create_kek(self, name: str) -> str:
        """Let KMS make a symmetric key; its key id is the id."""
        answer = self._ask(
            lambda client: client.create_key(
                Description=name,
                KeySpec="SYMMETRIC_DEFAULT",
                KeyUsage="ENCRYPT_DECRYPT",
                Tags=[{"TagKey": "trustauthority", "TagValue": name}],
            )["KeyMetadata"]
        )
        _check_state(answer, answer["KeyId"])
        return _checked_id(answer["KeyId"])

    def rotate(self, kek_id: str, name: str) -> str:  # noqa: ARG002  see below
        """Make another KEK: AWS rotates inside an id, which could not be told apart or retired."""
        return self.create_kek(name)

    def wrap(self, kek_id: str, vm_key: bytearray, aad: bytes) -> bytes:
        """Encrypt under a one-time key that KMS wraps."""
        key, context = _checked_id(kek_id), _context(aad)

        def wrap_key(client: Any, one_time: bytearray) -> bytes:
            answer = client.encrypt(KeyId=key, Plaintext=bytes(one_time), EncryptionContext=context)
            _check_key(answer, key)
            return bytes(answer["CiphertextBlob"])

        def wrap(client: Any) -> bytes:
            _check_state(client.describe_key(KeyId=key)["KeyMetadata"], key)
            sealed_for = bound(_KIND, _ALGORITHM, aad)
            return seal_in_two_layers(vm_key, sealed_for, lambda k: wrap_key(client, k))

        return Blob(kind=_KIND, algorithm=_ALGORITHM, body=self._ask(wrap)).encode()

    def unwrap(self, kek_id: str, wrapped: bytes, aad: bytes) -> bytearray:
        """Let KMS unwrap the one-time key, and decrypt with that."""
        key, context = _checked_id(kek_id), _context(aad)
        blob = read_blob(wrapped, _KIND, (_ALGORITHM,))

        def unwrap_key(client: Any, wrapped_key: bytes) -> bytearray:
            answer = client.decrypt(
                KeyId=key, CiphertextBlob=wrapped_key, EncryptionContext=context
            )
            _check_key(answer, key)
            if len(answer["Plaintext"]) != KEK_BYTES:
                raise refused(_DOES_NOT_OPEN).error(self._name)
            return bytearray(answer["Plaintext"])

        def unwrap(client: Any) -> bytearray:
            _check_state(client.describe_key(KeyId=key)["KeyMetadata"], key)
            sealed_for = bound(_KIND, _ALGORITHM, aad)
            return unseal_in_two_layers(blob.body, sealed_for, lambda k: unwrap_key(client, k))

        return self._ask(unwrap)

    def health(self) -> KmsHealth:
        """Whether KMS answers us, and when our credentials end."""
        ends_ms: int | None = None
        try:
            credentials = self._credentials()
            ends_ms = credentials.ends_ms
            answer = self._client(credentials).list_keys(Limit=1)
            server_ms = _date_ms(answer["ResponseMetadata"]["HTTPHeaders"])
        except Exception as failure:  # noqa: BLE001  foreign text may quote an answer: none passes
            trouble = _trouble(failure)
            health = KmsHealth(
                state=HealthState.ERROR,
                detail=f"KMS {self._name} {trouble.says}",
                kind=_KIND,
                trusts_server=trouble.trusts_server,
                trusted_by_server=trouble.trusted_by_server,
            )
        else:
            health = KmsHealth(
                state=HealthState.OK,
                detail=f"KMS {self._name} answers",
                kind=_KIND,
                trusts_server=True,
                trusted_by_server=True,
            )
            health = with_skew(health, server_ms=server_ms, now_ms=self._now_ms())
        return with_expiry(
            health,
            what=f"the credentials in {self._settings.credentials}",
            end_ms=ends_ms,
            now_ms=self._now_ms(),
            warn_ms=_WARN_MS,
        )

    def close(self) -> None:
        """End the connections of the client."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _ask(self, operation: Callable[[Any], Answer]) -> Answer:
        try:
            return operation(self._client(self._credentials()))
        except KmsUnavailable:
            raise
        except Exception as failure:  # noqa: BLE001  foreign text may quote an answer: none passes
            error = _trouble(failure).error(self._name)
        raise error  # outside, so that it does not carry the other one along

    def _client(self, credentials: "_Credentials") -> Any:
        """A client with these credentials; the one of before, if they are the same."""
        if self._open is None or self._open[0] != credentials:
            self.close()
            self._open = credentials, self._connect(credentials)
        return self._open[1]

    def _connect(self, credentials: "_Credentials") -> Any:
        settings = self._settings
        return _session().create_client(
            "kms",
            region_name=settings.region,
            endpoint_url=settings.endpoint or None,
            verify=str(settings.ca) if settings.ca else True,
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            aws_session_token=credentials.session_token,
            config=Config(
                connect_timeout=settings.timeout_s,
                read_timeout=settings.timeout_s,
                retries={"total_max_attempts": 1},
                proxies={},
                parameter_validation=True,
            ),
        )

    def _credentials(self) -> "_Credentials":
        """Read the file anew: whoever rotates it need not tell us."""
        path = self._settings.credentials
        text = read_secret(path).decode("utf-8", "replace")
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        try:
            parser.read_string(text)
            profile = parser[self._settings.profile]
            return _Credentials(
                access_key=profile["aws_access_key_id"],
                secret_key=profile["aws_secret_access_key"],
                session_token=profile.get("aws_session_token"),
                ends_ms=_end_ms(profile),
            )
        except (configparser.Error, KeyError, ValueError):
            raise InsecureFile(f"{path} is no credentials file", path=str(path)) from None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Credentials:
    access_key: str
    secret_key: str
    session_token: str | None
    ends_ms: int | None


@cache
def _session() -> Any:
    """botocore's session, which reads nothing of a home folder; it is slow to make."""
    session = botocore.session.Session()
    for variable in ("config_file", "credentials_file"):
        session.set_config_variable(variable, "/dev/null")
    return session


_DOES_NOT_OPEN = "does not open this VM key: wrong key, another VM or a changed blob"


_FORBIDDEN = Trouble(
    says="does not know us or does not allow that: look at our credentials, and at the policies",
    outage=False,
    trusts_server=True,
    trusted_by_server=False,
)
_REFUSALS = {
    **dict.fromkeys(_NO_CREDENTIALS, REFUSED_LOGIN),
    **dict.fromkeys(_WRONG, refused(_DOES_NOT_OPEN)),
    "DisabledException": refused("has this KEK disabled"),
    "KMSInvalidStateException": refused("has this KEK in a state in which it is not used"),
    "NotFoundException": refused("has no such KEK"),
    "AccessDeniedException": refused(
        "does not allow that: look at the key's policy and our role's"
    ),
}


def _trouble(failure: Exception) -> Trouble:
    if not isinstance(failure, ClientError):
        return trouble_of(failure)
    code = failure.response.get("Error", {}).get("Code")
    if code in _REFUSALS:
        return _REFUSALS[code]
    status = failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status == 403:
        return _FORBIDDEN
    if code in _OUTAGES or not isinstance(status, int) or status >= 500 or status == 429:
        return Trouble(says="is overloaded or failed", trusts_server=True)
    return refused("refused")


def _check_state(metadata: Mapping[str, Any], key: str) -> None:
    """Only an enabled key that is meant for it, whatever the KMS would let us do."""
    state, usage = metadata.get("KeyState"), metadata.get("KeyUsage")
    if state != "Enabled":
        words = _words(state)
        raise KmsUnavailable(f"KEK {key} is {words} in the KMS, not enabled", kek=key, state=words)
    spec = metadata.get("KeySpec") or metadata.get("CustomerMasterKeySpec")
    if usage != "ENCRYPT_DECRYPT" or spec != "SYMMETRIC_DEFAULT":
        raise KmsUnavailable(f"KEK {key} is no symmetric key for encryption")


def _check_key(answer: Mapping[str, Any], key: str) -> None:
    """The answer is of the KEK that was asked for."""
    if str(answer.get("KeyId")).rpartition("/")[2] != key:
        raise KmsUnavailable("the KMS answered for another KEK: wrong key")


def _context(aad: bytes) -> dict[str, str]:
    """The encryption context: readable in CloudTrail, and authenticated by KMS."""
    try:
        text = aad.decode("ascii")
    except UnicodeDecodeError:
        text = aad.hex()
    return {"trustauthority": header(_KIND, _ALGORITHM).hex(), "aad": text or "-"}


def _checked_id(kek_id: object) -> str:
    if not isinstance(kek_id, str) or not _ID.fullmatch(kek_id):
        raise KmsUnavailable("this is no id of a KEK")
    return kek_id


def _words(state: object) -> str:
    """``PendingDeletion`` as pending-deletion; nothing else that a peer chose."""
    if not isinstance(state, str) or not re.fullmatch("[A-Za-z]{1,32}", state):
        return "in an unknown state"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", state).lower()


def _date_ms(headers: Mapping[str, str]) -> int | None:
    try:
        return int(parsedate_to_datetime(headers["date"]).timestamp() * 1000)
    except (KeyError, ValueError, TypeError):
        return None


def _end_ms(profile: Mapping[str, str]) -> int | None:
    """When temporary credentials end, if whoever wrote the file says so."""
    text = profile.get("x_security_token_expires") or profile.get("aws_expiration")
    return None if not text else int(datetime.fromisoformat(text).timestamp() * 1000)
