"""What a failed call means, whatever the other side put into it."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from trustauthority.client import reasons
from trustauthority.client.errors import ClientError, client_error
from trustauthority.client.retry import ATTEMPTS, retrying


class FakeCall(grpc.RpcError, grpc.Call):
    """An ended call with a code, a text and trailing metadata."""

    def __init__(self, code: grpc.StatusCode, text: str | None = "text", trailing=()) -> None:
        self._code, self._text, self._trailing = code, text, trailing

    def code(self):
        return self._code

    def details(self):
        return self._text

    def trailing_metadata(self):
        return self._trailing

    def initial_metadata(self):
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self):
        return None

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback) -> bool:
        return False


def with_details(*details, code=grpc.StatusCode.ABORTED, message="text") -> FakeCall:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return FakeCall(code, message, rpc_status.to_status(status).trailing_metadata)


def test_reason_metadata_and_delay_come_from_the_details() -> None:
    """AIP-193: ErrorInfo of our domain decides, RetryInfo says when to come again."""
    info = error_details_pb2.ErrorInfo(
        reason="GRANT_HELD_ELSEWHERE", domain="trustauthority.dev", metadata={"vm": "payroll"}
    )
    delay = error_details_pb2.RetryInfo()
    delay.retry_delay.FromMilliseconds(1_500)
    error = client_error(with_details(info, delay), request_id="r1")
    assert (error.reason, error.metadata) == ("GRANT_HELD_ELSEWHERE", {"vm": "payroll"})
    assert (error.retry_after_s, error.request_id, error.message) == (1.5, "r1", "text")


def test_a_reason_of_another_domain_is_not_ours() -> None:
    """A proxy's ErrorInfo can't pose as the authority's."""
    info = error_details_pb2.ErrorInfo(reason="NOT_FOUND", domain="proxy.example")
    assert client_error(with_details(info)).reason == "CONFLICT"


def test_details_that_contradict_the_status_are_not_believed() -> None:
    """Hand-made details with another code are dropped, the status stands."""
    good = with_details(error_details_pb2.ErrorInfo(reason="X_Y", domain="trustauthority.dev"))
    forged = FakeCall(grpc.StatusCode.NOT_FOUND, "text", good.trailing_metadata())
    assert client_error(forged).reason == "NOT_FOUND"


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_has_a_reason(code: grpc.StatusCode) -> None:
    """No status of gRPC is without a reason."""
    assert client_error(FakeCall(code, None)).reason
    assert client_error(FakeCall(code, None)).message


def test_an_error_without_a_call_is_internal() -> None:
    """What grpc raises without a status is not a refusal."""
    assert client_error(grpc.RpcError("odd")).reason == "INTERNAL"


def test_a_failed_handshake_is_told_from_silence() -> None:
    """N02: the wrong CA is a reason of its own, because waiting does not help."""
    text = "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED: self signed"
    error = client_error(FakeCall(grpc.StatusCode.UNAVAILABLE, text))
    assert error.reason == reasons.AUTHORITY_UNVERIFIED
    assert client_error(FakeCall(grpc.StatusCode.UNAVAILABLE)).reason == reasons.UNAVAILABLE


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            (
                "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
                "Failed to connect to remote host: Connection refused"
            ),
            "ipv4:127.0.0.1:1: Connection refused",
        ),
        (
            (
                "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Tls handshake "
                "failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:"
                "OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: self signed certificate: OK"
            ),
            "ipv4:127.0.0.1:1: CERTIFICATE_VERIFY_FAILED: self signed certificate",
        ),
        ("the store is full", "the store is full"),
    ],
)
def test_the_cause_stands_without_the_noise(text: str, short: str) -> None:
    """A person sees the address and the cause, not the layers of the library."""
    assert client_error(FakeCall(grpc.StatusCode.UNAVAILABLE, text)).message == short


def counted(failures: list[ClientError]):
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        if failures:
            raise failures.pop(0)
        return "answer"

    return call, calls


def test_silence_is_asked_again() -> None:
    """A node that restarts costs a read nothing."""
    call, calls = counted(
        [ClientError("x", reason="UNAVAILABLE", retry_after_s=0.001) for _ in range(2)]
    )
    assert retrying(call, timeout_s=5) == "answer"
    assert len(calls) == 3


def test_there_is_an_end_to_asking() -> None:
    """At most ATTEMPTS, and the last error is what is raised."""
    call, calls = counted(
        [ClientError("x", reason="STORE_UNAVAILABLE", retry_after_s=0.001) for _ in range(9)]
    )
    with pytest.raises(ClientError, match="x"):
        retrying(call, timeout_s=5)
    assert len(calls) == ATTEMPTS


@pytest.mark.parametrize(
    "error",
    [
        ClientError("x", reason="NOT_FOUND"),
        ClientError("x", reason="DEADLINE_EXCEEDED"),
        ClientError("x", reason="AUTHORITY_UNVERIFIED"),
        ClientError("x", reason="UNAVAILABLE", retry_after_s=3_600),
        ValueError("a bug"),
    ],
)
def test_what_a_moment_does_not_heal_is_not_asked_again(error: Exception) -> None:
    """A refusal is an answer; a long delay is the person's decision; a bug is a bug."""
    call, calls = counted([error])
    with pytest.raises(type(error)):
        retrying(call, timeout_s=5)
    assert len(calls) == 1
