"""What went wrong on the way to a KMS, in words of our own, and whose trust failed.

Stage: adapter, pure. Libraries wrap an error of TLS or of a socket in errors of their own; the cause is
looked for in the chain. Guarantees that no text which a peer chose gets into a sentence. The two
directions of TLS trust are told apart: whether we accept the server, and whether it accepts us.
"""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from trustauthority.adapters.kms.port import outage
from trustauthority.errors import InsecureFile, KmsUnavailable

_MAX_CAUSES = 64
_OUR_CERTIFICATE = ("CERT", "_CA", "ACCESS_DENIED", "DECRYPT_ERROR", "HANDSHAKE_FAILURE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a KMS did not do what it was asked."""

    says: str
    """Continues "KMS NAME …"."""
    outage: bool = True
    """Whether the KMS was not reached or did not answer; False for a refusal and our own mistakes."""
    trusts_server: bool | None = None
    trusted_by_server: bool | None = None

    def error(self, kms: str) -> KmsUnavailable:
        """What the caller gets."""
        message = f"KMS {kms} {self.says}"
        return outage(message) if self.outage else KmsUnavailable(message)


REFUSED_LOGIN = Trouble(
    says="does not know us: is our certificate or token registered there, and still valid?",
    outage=False,
    trusts_server=True,
    trusted_by_server=False,
)


def refused(says: str) -> Trouble:
    """The KMS is there, knows us, and says no."""
    return Trouble(says=says, outage=False, trusts_server=True, trusted_by_server=True)


def ours(says: str) -> Trouble:
    """We could not even ask."""
    return Trouble(says=f"can't be asked: {says}", outage=False)


def trouble_of(failure: BaseException) -> Trouble:
    """Find the cause of a failure of TLS, of the network or of our files."""
    causes = list(_causes(failure))
    for kind in (InsecureFile, ssl.SSLError, TimeoutError, socket.gaierror, OSError, EOFError):
        for cause in causes:
            if isinstance(cause, kind) and type(cause).__module__ in _KNOWN_MODULES:
                return _explain(cause)
    return Trouble(says=f"answered with what can't be read ({type(failure).__name__})")


_CLOSED = Trouble(says="closed the connection instead of answering")
_PLAIN: tuple[tuple[type[BaseException], Trouble], ...] = (
    (InsecureFile, ours("a file with our secrets is open to others, or not what it should be")),
    (ssl.SSLEOFError, _CLOSED),
    (ssl.SSLZeroReturnError, _CLOSED),
    (TimeoutError, Trouble(says="did not answer in time")),
    (ConnectionRefusedError, Trouble(says="refuses connections: is it running?")),
    (ConnectionError, _CLOSED),
    (EOFError, _CLOSED),
    (socket.gaierror, Trouble(says="has a name that does not resolve")),
    (FileNotFoundError, ours("a file of our settings is missing or unreadable")),
    (PermissionError, ours("a file of our settings is missing or unreadable")),
)
_KNOWN_MODULES = {"builtins", "ssl", "socket", "trustauthority.errors"}
"""requests makes every error of its own an OSError; such a one says nothing."""


def _causes(failure: BaseException) -> Iterator[BaseException]:
    """A failure and whatever it wraps: as cause, context, argument or attribute."""
    seen: list[BaseException] = [failure]
    for each in seen:
        yield each
        inside = (
            *(each.__cause__, each.__context__, getattr(each, "reason", None), *each.args),
            *(getattr(each, "kwargs", None) or {}).values(),
        )
        new = [x for x in inside if isinstance(x, BaseException) and x not in seen]
        seen.extend(new[: _MAX_CAUSES - len(seen)])


def _explain(cause: BaseException) -> Trouble:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Trouble(
            says=f"showed a certificate that we do not accept: {cause.verify_message}",
            outage=False,
            trusts_server=False,
        )
    for kind, trouble in _PLAIN:
        if isinstance(cause, kind):
            return trouble
    if isinstance(cause, ssl.SSLError):
        return _explain_tls(cause)
    return Trouble(says=f"can't be reached ({type(cause).__name__})")


def _explain_tls(cause: ssl.SSLError) -> Trouble:
    reason = str(cause.reason or "")
    if "ALERT" in reason and any(part in reason for part in _OUR_CERTIFICATE):
        word = reason.partition("ALERT_")[2].lower().replace("_", " ")
        return Trouble(
            says=f"does not accept our client certificate: {word}",
            outage=False,
            trusts_server=True,
            trusted_by_server=False,
        )
    return Trouble(says=f"and we agree on no TLS connection: {reason or 'it was cut'}")
