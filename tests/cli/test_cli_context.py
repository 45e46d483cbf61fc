"""ta context: whom to ask, whom to believe, as whom; and certificates that end."""

import json
from datetime import timedelta

import pytest
from fakes.fake_audit_log import FakeAuditLog
from fakes.fake_authority import FakeAuthority
from support.client_certificates import CertificateAuthority, write_identity

from trustauthority.cli.exit import ExitCode
from trustauthority.v1 import admin_pb2 as admin
from trustauthority.v1 import keyprovider_pb2 as keys


def add(ta, name: str = "lab", *more: str, server: str = "ta.example:8443"):
    home = ta.home
    files = ["--ca", f"{home}/ca.pem", "--cert", f"{home}/alice.pem", "--key", f"{home}/alice.key"]
    return ta("context", "add", name, "--server", server, *files, *more)


def test_contexts_come_and_go(ta) -> None:
    """kubectl's habit: add, use, list, show, remove; comments of a person stay."""
    ta.contexts.write_text("# mine\n" + ta.contexts.read_text())
    key = str(FakeAuditLog().audit_key)
    result = add(ta, "lab", "--audit-key", key, "--key-server", "ta.example:8444", "--cluster", "c")
    assert result.code is ExitCode.YES
    assert "audit key    " + key in result.out
    assert ta("context", "list", "-o", "name").out == "lab\ntest\n"
    assert "→  test     SERVER" in ta("context", "list").out
    assert ta("context", "use", "lab").code is ExitCode.YES
    assert "→  lab      ta.example:8443  ta.example:8444  c" in ta("context", "list").out
    shown = json.loads(ta("context", "show", "-o", "json").out)
    assert (shown["name"], shown["auditKey"], shown["cluster"]) == ("lab", key, "c")
    assert ta.contexts.read_text().startswith("# mine\n")
    assert ta.contexts.stat().st_mode & 0o777 == 0o600
    assert ta("context", "remove", "lab").code is ExitCode.YES
    assert ta("context", "list", "-o", "name").out == "test\n"
    assert ta("status").code is ExitCode.NOT_FOUND


def test_the_first_context_is_in_use_at_once(ta) -> None:
    """A newcomer types one command less."""
    ta.contexts.unlink()
    assert "There is no context. Add one: ta context add" in ta("context", "list").err
    assert add(ta, "prod").code is ExitCode.YES
    assert "prod" in ta("context", "show").out


def test_dry_run_adds_nothing(ta) -> None:
    """--dry-run only checks."""
    assert add(ta, "lab", "--dry-run").code is ExitCode.YES
    assert ta("context", "list", "-o", "name").out == "test\n"


@pytest.mark.parametrize("name", ["../x", "a b", "A", "", "a\x1b", "x" * 64, "-a"])
def test_a_context_name_is_a_name(ta, name: str) -> None:
    """N44: the name becomes a file name of the kept checkpoint, so its grammar is strict."""
    result = add(ta, name)
    assert result.code is ExitCode.USAGE
    assert "\x1b" not in result.err


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "a+b+c",
        "authority.example/audit+00000000+" + "A" * 44,
        "ORIGIN+1234+!!!",
    ],
)
def test_an_audit_key_that_is_none_is_refused(ta, text: str) -> None:
    """A mistyped pin must not look like one."""
    assert add(ta, "lab", "--audit-key", text).code is ExitCode.USAGE
    assert ta("context", "list", "-o", "name").out == "test\n"


def test_an_audit_key_may_stand_in_a_file(ta) -> None:
    """``trustauthority init`` writes one; pointing at it is enough."""
    (ta.home / "audit.vkey").write_text(f"{FakeAuditLog().audit_key}\n")
    assert add(ta, "lab", "--audit-key", f"{ta.home}/audit.vkey").code is ExitCode.YES


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o604, 0o660])
def test_a_private_key_that_others_can_read_is_refused(
    ta, authority: FakeAuthority, mode: int
) -> None:
    """N60: no request goes out with such a key, and the message says what to run."""
    authority.answer("GetStatus", admin.GetStatusResponse())
    (ta.home / "alice.key").chmod(mode)
    result = ta("status")
    assert result.code is ExitCode.USAGE
    assert "[INSECURE_FILE]" in result.err
    assert f"(mode {mode:04o}); run chmod 600" in result.err
    assert not authority.requests
    assert add(ta, "lab").code is ExitCode.USAGE


@pytest.mark.parametrize("mode", [0o666, 0o622, 0o620])
def test_a_contexts_file_that_others_can_write_is_refused(ta, mode: int) -> None:
    """N60: who can write it can name another CA."""
    ta.contexts.chmod(mode)
    result = ta("status")
    assert result.code is ExitCode.USAGE
    assert "[INSECURE_FILE]" in result.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace("server =", "sever ="), "contexts.test.sever: unknown key"),
        (lambda t: t.replace('ca = "ca.pem"\n', ""), "contexts.test.ca: missing"),
        (lambda t: t + "tls = false\n", "contexts.test.tls: unknown key"),
        (lambda t: t.replace("[contexts.test]", '[contexts."../x"]'), "not a name"),
        (lambda t: "colour = 1\n" + t, "colour: unknown key"),
        (lambda t: t.replace('ca = "ca.pem"', "ca = 3"), "contexts.test.ca: not a text"),
        (lambda t: t + 'audit_key = "x"\n', "contexts.test.audit_key"),
        (lambda t: t + "]", "is not TOML"),
        (lambda t: 'current = "test"\n[contexts]\ntest = 1\n', "contexts.test: not a table"),
    ],
)
def test_a_wrong_contexts_file_names_the_place(ta, change, words: str) -> None:
    """Style 3.9: unknown keys are errors, with their path."""
    ta.contexts.write_text(change(ta.contexts.read_text()))
    result = ta("status")
    assert result.code is ExitCode.USAGE
    assert words in result.err


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (["--context", "nowhere"], "there is no context 'nowhere'"),
        ([], "TA_CONTEXT"),
    ],
)
def test_an_unknown_context_says_which_there_are(ta, how: list[str], words: str) -> None:
    """A wrong name is answered with the right ones."""
    if not how:
        ta.environment["TA_CONTEXT"], words = "nowhere", "there is: test"
    result = ta("status", *how)
    assert result.code is ExitCode.NOT_FOUND
    assert words in result.err


@pytest.mark.parametrize("file", ["ca.pem", "alice.pem", "alice.key"])
def test_a_missing_file_is_named(ta, file: str) -> None:
    """The message says which file, as what, and why."""
    (ta.home / file).unlink()
    result = ta("status")
    assert result.code is ExitCode.USAGE
    assert f"HOME/{file}: No such file" in result.err


@pytest.mark.parametrize("file", ["ca.pem", "alice.pem"])
def test_a_file_that_is_no_certificate_is_named(ta, file: str) -> None:
    """Garbage is told before a handshake fails for reasons that nobody understands."""
    (ta.home / file).write_text("garbage")
    result = ta("status")
    assert result.code is ExitCode.USAGE
    assert f"HOME/{file} holds no PEM certificate" in result.err


def test_a_certificate_near_its_end_is_said_with_every_command(
    ta, authority: FakeAuthority, ca: CertificateAuthority
) -> None:
    """Issue 2: a warning when less than a fifth of the validity is left, even with -q."""
    authority.answer("GetStatus", admin.GetStatusResponse())
    authority.answer("ListHosts", admin.ListHostsResponse())
    # It must count by the real clock too, which TLS uses; so the test's clock moves instead.
    write_identity(ta.home, ca, "alice", left=timedelta(days=3_650))
    end = ta.now.replace(year=2035, month=12, day=30, hour=0, minute=0, second=0)
    ta.now = end - timedelta(days=729)
    warned = "the certificate of context test ends in"
    assert warned in ta("status", "-q").err
    assert f"{warned} 729d (2035-12-30 00:00:00Z): ta identity renew" in ta("host", "list").err
    ta.now = end - timedelta(days=735)
    assert warned not in ta("status").err


def test_an_ended_certificate_is_not_even_tried(ta, authority: FakeAuthority) -> None:
    """The message says which certificate ended and what to do, instead of a failed handshake."""
    ta.now = ta.now.replace(year=2036)
    result = ta("status")
    assert result.code is ExitCode.DENIED
    assert "ended at 2035-12-30 00:00:00Z" in result.err
    assert not authority.requests


def test_a_clock_before_the_certificate_is_said(ta, authority: FakeAuthority) -> None:
    """A machine without a battery clock gets a hint, not a riddle."""
    ta.now = ta.now.replace(year=1970)
    result = ta("status")
    assert result.code is ExitCode.NO
    assert "is the clock of this machine right?" in result.err


def test_a_server_whose_certificate_is_another_s_is_named_so(ta, authority: FakeAuthority) -> None:
    """The pinned CA fails the handshake, and the message says that this is the reason."""
    (ta.home / "ca.pem").write_bytes(CertificateAuthority("stranger").pem)
    result = ta("status", "--timeout", "3s")
    assert result.code is ExitCode.DENIED
    assert "[AUTHORITY_UNVERIFIED]" in result.err


def test_key_calls_go_to_the_key_server_and_come_back_when_it_has_none(
    make_ta, ca: CertificateAuthority, authority: FakeAuthority
) -> None:
    """Design 3 I-F: roles are one process or several; a call that one lacks goes to the other."""
    certificate, key = ca.issue("key role")
    with FakeAuthority(ca=ca.pem, certificate=certificate, key=key) as key_role:
        ta = make_ta(authority.address)
        ta.contexts.write_text(ta.contexts.read_text() + f'key_server = "{key_role.address}"\n')
        key_role.answer("ListKeys", keys.ListKeysResponse())
        authority.answer("ListVms", keys.ListVmsResponse())
        authority.answer("GetStatus", admin.GetStatusResponse())
        assert ta("key", "list").code is ExitCode.YES
        assert ta("vm", "list").code is ExitCode.YES
        assert ta("status").code is ExitCode.YES
        assert [type(r).__name__ for r in key_role.requests] == [
            "ListKeysRequest",
            "ListVmsRequest",
            "GetStatusRequest",  # status is one screen over both processes
        ]
        assert [type(r).__name__ for r in authority.requests] == [
            "ListVmsRequest",
            "GetStatusRequest",
        ]


def test_one_address_that_is_down_leaves_the_other(make_ta, authority: FakeAuthority) -> None:
    """A call that was never sent goes to the other address, a change too; the cause is not lost."""
    ta = make_ta(authority.address)
    ta.contexts.write_text(ta.contexts.read_text() + 'key_server = "127.0.0.1:1"\n')
    authority.answer("CreateKey", keys.CreateKeyResponse(key=keys.VmKey(vm_id="payroll")))
    assert ta("key", "create", "payroll").code is ExitCode.YES
    authority.forget()
    result = ta("key", "create", "payroll")
    assert result.code is ExitCode.NO_ANSWER
    assert "127.0.0.1:1: Connection refused" in result.err


def test_server_option_asks_another_address_and_believes_the_same_ca(
    ta, authority: FakeAuthority
) -> None:
    """--server changes whom to ask, never whom to believe."""
    authority.answer("GetStatus", admin.GetStatusResponse())
    ta.contexts.write_text(ta.contexts.read_text().replace(ta.address, "127.0.0.1:1"))
    assert ta("status", "--timeout", "1s").code is ExitCode.NO_ANSWER
    assert ta("status", "--server", ta.address).code is ExitCode.YES


def test_request_ids_differ(ta, authority: FakeAuthority) -> None:
    """Each call can be found in the server's log."""
    authority.answer("GetStatus", admin.GetStatusResponse())
    ta("status")
    ta("status")
    assert len({str(entry["ta-request-id"]) for entry in authority.metadata}) == 2
