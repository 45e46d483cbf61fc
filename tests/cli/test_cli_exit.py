"""Exit codes are a contract with scripts: each reason has one, and each failure says what to do."""

import re
from pathlib import Path

import grpc
import pytest
from fakes.fake_authority import FakeAuthority
from support.admin_messages import host
from support.client_certificates import CertificateAuthority, write_identity

from trustauthority import errors
from trustauthority.cli.exit import ADVICE, CODES, ExitCode, exit_code
from trustauthority.client import reasons
from trustauthority.v1 import admin_pb2 as admin


def hierarchy(kind: type[errors.TrustAuthorityError]) -> list[type[errors.TrustAuthorityError]]:
    return [kind, *(c for child in kind.__subclasses__() for c in hierarchy(child))]


def test_every_reason_has_an_exit_code() -> None:
    """Style 3.5: the table is complete, for the authority's reasons and for the client's own."""
    ours = {kind.reason for kind in hierarchy(errors.TrustAuthorityError)}
    known = ours | set(reasons.TRANSPORT_REASONS)
    # Classes of other programs in this process (a test's own, the agent's) are not the authority's.
    ours = {
        kind.reason
        for kind in hierarchy(errors.TrustAuthorityError)
        if kind.__module__ == "trustauthority.errors"
    }
    assert ours - set(CODES) == set()
    assert set(reasons.TRANSPORT_REASONS) - set(CODES) == set()
    assert set(CODES) - known == set()
    assert set(ADVICE) - set(CODES) == set()


@pytest.mark.parametrize("reason", sorted(CODES))
def test_a_reason_on_the_wire_becomes_its_exit_code(
    ta, authority: FakeAuthority, reason: str
) -> None:
    """Design 9: the exit code follows ErrorInfo, whatever gRPC code carried it."""
    authority.fail("GetHost", code=grpc.StatusCode.ABORTED, reason=reason, message="because")
    result = ta("host", "show", "a")
    assert result.code is CODES[reason]
    assert "because" in result.err
    assert result.out == ""


def test_a_reason_of_a_newer_authority_is_a_no() -> None:
    """An unknown refusal is not a success and not a bug."""
    assert exit_code("SOMETHING_NEW") is ExitCode.NO


@pytest.mark.parametrize(
    ("code", "exit_", "reason"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, ExitCode.DENIED, "UNAUTHENTICATED"),
        (grpc.StatusCode.PERMISSION_DENIED, ExitCode.DENIED, "PERMISSION_DENIED"),
        (grpc.StatusCode.NOT_FOUND, ExitCode.NOT_FOUND, "NOT_FOUND"),
        (grpc.StatusCode.UNIMPLEMENTED, ExitCode.USAGE, "UNIMPLEMENTED"),
        (grpc.StatusCode.UNAVAILABLE, ExitCode.NO_ANSWER, "UNAVAILABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ExitCode.NO_ANSWER, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.DATA_LOSS, ExitCode.BUG, "error id"),
    ],
)
def test_a_status_without_a_reason_still_has_an_exit_code(
    ta, authority: FakeAuthority, code: grpc.StatusCode, exit_: ExitCode, reason: str
) -> None:
    """A proxy in between sends bare codes; they are told apart too."""
    authority.fail("GetHost", code=code)
    result = ta("host", "show", "a")
    assert result.code is exit_
    assert reason in result.err


def test_a_mistake_of_the_authority_shows_its_error_id(ta, authority: FakeAuthority) -> None:
    """Style 3.5: INTERNAL carries only an error id, and that is what a person can report."""
    authority.fail(
        "GetHost",
        code=grpc.StatusCode.INTERNAL,
        reason="INTERNAL",
        metadata={"errorId": "e-5f0c"},
    )
    result = ta("host", "show", "a")
    assert result.code is ExitCode.BUG
    assert "e-5f0c" in result.err


def test_a_bug_of_ours_is_said_and_not_dumped(ta, authority: FakeAuthority, monkeypatch) -> None:
    """Exit 70 with an id; the stack only with -v, escaped."""

    def explode(*_args: object) -> None:
        raise ZeroDivisionError("\x1b[31m")

    monkeypatch.setattr("trustauthority.cli.status._show", explode)
    authority.answer("GetStatus", admin.GetStatusResponse())
    result = ta("status")
    assert result.code is ExitCode.BUG
    found = re.search(r"error id ([0-9a-f]{12})", result.err)
    assert found is not None
    assert "Traceback" not in result.err
    loud = ta("status", "-v")
    assert "Traceback" in loud.err
    assert found[1] in loud.err
    assert "\x1b" not in loud.err


def test_ctrl_c_is_130(ta, authority: FakeAuthority, monkeypatch) -> None:
    """An interruption is neither a success nor a bug."""

    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trustauthority.cli.status._show", interrupt)
    authority.answer("GetStatus", admin.GetStatusResponse())
    assert ta("status").code is ExitCode.INTERRUPTED


def test_nothing_listens(make_ta) -> None:
    """No authority at the address: exit 5, and where to look."""
    ta = make_ta("127.0.0.1:1")
    result = ta("host", "list", "--timeout", "2s")
    assert result.code is ExitCode.NO_ANSWER
    assert "[UNAVAILABLE]" in result.err
    assert "ta context show" in result.err


def test_a_server_of_another_ca_is_not_believed(ta, authority: FakeAuthority) -> None:
    """N02: the pinned CA decides; a stranger with any other certificate gets no question."""
    (ta.home / "ca.pem").write_bytes(CertificateAuthority("stranger").pem)
    authority.answer("GetStatus", admin.GetStatusResponse(version="evil"))
    result = ta("status", "--timeout", "2s")
    assert result.code in {ExitCode.DENIED, ExitCode.NO_ANSWER}
    assert "evil" not in result.out
    assert not authority.requests


def test_a_certificate_of_another_ca_reaches_no_handler(ta, authority: FakeAuthority) -> None:
    """N02: the handshake fails for a foreign client certificate."""
    from datetime import timedelta

    write_identity(ta.home, CertificateAuthority("stranger"), "alice", left=timedelta(days=3_650))
    authority.answer("GetStatus", admin.GetStatusResponse())
    result = ta("status", "--timeout", "2s")
    assert result.code in {ExitCode.DENIED, ExitCode.NO_ANSWER}
    assert not authority.requests


def test_a_read_is_asked_again_and_a_change_is_not(ta, authority: FakeAuthority) -> None:
    """A restarting node costs a read nothing; a change whose outcome is unknown is not repeated."""
    down = {"code": grpc.StatusCode.UNAVAILABLE, "reason": "STORE_UNAVAILABLE"}
    good = admin.GetHostResponse(host=host("a"))
    authority.fail("GetHost", **down, times=2, retry_after_s=0.01, then=good)
    assert ta("host", "show", "a").code is ExitCode.YES
    assert len(authority.requests) == 3
    authority.forget()
    authority.fail("RevokeHost", **down, times=1, then=admin.RevokeHostResponse())
    result = ta("host", "revoke", "a")
    assert result.code is ExitCode.NO_ANSWER
    assert len(authority.requests) == 1


def test_a_long_delay_is_told_and_not_waited_for(ta, authority: FakeAuthority) -> None:
    """RetryInfo of a minute is for the person to decide."""
    authority.fail(
        "GetHost", code=grpc.StatusCode.UNAVAILABLE, reason="KMS_UNAVAILABLE", retry_after_s=60
    )
    result = ta("host", "show", "a")
    assert result.code is ExitCode.NO_ANSWER
    assert "try again in 60s" in result.err
    assert len(authority.requests) == 1


@pytest.mark.parametrize(
    "tokens",
    [
        ["hots"],
        ["host", "lsit"],
        ["host", "list", "--clster", "x"],
        ["host", "explain"],
        ["host", "list", "-o", "xml"],
        ["host", "list", "--timeout", "soon"],
        ["placement", "check", "--vm", "a"],
        ["identity", "issue", "x", "--role", "root", "--key", "k", "--cert", "c"],
        ["vm", "protect", "x", "--lease", "forever"],
        ["audit", "tail", "-n", "0"],
        ["audit", "tail", "-n", "1001"],
    ],
)
def test_wrong_usage_is_2_and_asks_nobody(ta, authority: FakeAuthority, tokens: list[str]) -> None:
    """A typing mistake never reaches the authority; help is named."""
    result = ta(*tokens)
    assert result.code is ExitCode.USAGE
    assert result.out == ""
    assert result.err.startswith("✖ ")
    assert not authority.requests


def test_did_you_mean(ta) -> None:
    """Style 4.1: a slip is recognised, for commands and for flags."""
    assert 'Did you mean "host"' in ta("hots").err
    assert 'Did you mean "list"' in ta("host", "lsit").err
    assert "Did you mean --cluster" in ta("host", "list", "--clster", "x").err


def test_options_may_stand_before_the_noun(ta, authority: FakeAuthority) -> None:
    """One meaning everywhere: -o json before or after the command."""
    authority.answer("GetHost", admin.GetHostResponse(host=host("a")))
    before = ta("-o", "json", "-q", "--timeout=5s", "host", "show", "a")
    assert before.out == ta("host", "show", "a", "-o", "json").out
    assert before.out.startswith("{")


def test_a_closed_pipe_is_no_error(ta, authority: FakeAuthority, monkeypatch) -> None:
    """``ta host list | head -1`` ends quietly."""

    def closed(*_args: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("trustauthority.cli.status._show", closed)
    authority.answer("GetStatus", admin.GetStatusResponse())
    assert ta("status").code is ExitCode.YES


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ima", "imalogs/good_ima-ng.bin"), ExitCode.YES),
        (("ima", "imalogs/template_digest_wrong.bin"), ExitCode.NO),
        (("ima", "imalogs/good_ima-ng.bin", "--pcr10", "11" * 32), ExitCode.NO),
        (("ima", "imalogs/cut_at_20.bin"), ExitCode.USAGE),
        (("ima", "imalogs/no-such-file.bin"), ExitCode.USAGE),
        (("ima",), ExitCode.USAGE),
        (("eventlog", "imalogs/cut_at_20.bin"), ExitCode.USAGE),
    ],
)
def test_the_offline_tools_end_as_they_say(ta, arguments, code) -> None:
    """A script that trusts the exit status of ta evidence is told no when the answer is no (N12)."""
    tool, *rest = arguments
    vectors = Path(__file__).parent.parent / "vectors"
    files = [str(vectors / each) if each.endswith(".bin") else each for each in rest]
    assert ta("evidence", tool, *files).code is code
