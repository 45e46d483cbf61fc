"""ta audit: who got which key when, and no lie of the authority passes for the log."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fakes.fake_audit_log import FakeAuditLog
from fakes.fake_authority import FakeAuthority

from trustauthority.cli.exit import ExitCode
from trustauthority.client.contexts import load_contexts, save_context
from trustauthority.v1 import admin_pb2 as admin

pytestmark = pytest.mark.usefixtures("log")


@pytest.fixture
def log(ta, authority: FakeAuthority) -> FakeAuditLog:
    """A log of three decisions, its key pinned in the context."""
    from dataclasses import replace

    log = FakeAuditLog()
    log.add(actor="alice", operation="host.admit", subject="esx-a01", decision="done")
    log.add()
    log.add(actor="h-esx-a03", decision="refused", reason="HOST_NOT_ATTESTED")
    log.serve(authority)
    environment = {"TA_CONTEXTS_FILE": str(ta.contexts)}
    context = load_contexts(environment).get()
    save_context(environment, replace(context, audit_key=log.audit_key), use=True)
    return log


def kept(ta) -> int:
    """Size of the checkpoint that this machine keeps; -1 when there is none."""
    path = ta.home / "checkpoints" / "test"
    return int(path.read_text().splitlines()[1]) if path.exists() else -1


def test_tail_shows_who_got_which_key_when_with_proof(ta) -> None:
    """I-D, S11: each line is proven to be under the signed checkpoint."""
    result = ta("audit", "tail")
    assert (result.code, result.err) == (ExitCode.YES, "")
    assert result.out == (
        "last 3 entries of 3 · authority SERVER · 14:02:11Z\n"
        "   SEQ  TIME                  ACTOR      OPERATION    SUBJECT  DECISION  REASON\n"
        "✔  0    2026-11-20 14:00:00Z  alice      host.admit   esx-a01  done      –\n"
        "✔  1    2026-11-20 14:01:00Z  h-esx-a01  key.release  payroll  released  –\n"
        "✔  2    2026-11-20 14:02:00Z  h-esx-a03  key.release  payroll  refused   "
        "HOST_NOT_ATTESTED\n"
    )


def test_tail_in_json(ta) -> None:
    """The entry as it was hashed, and whether it is proven."""
    rows = json.loads(ta("audit", "tail", "-n", "2", "-o", "json").out)
    assert [row["sequence"] for row in rows] == [1, 2]
    assert rows[0] == {
        "actor": "h-esx-a01",
        "decision": "released",
        "details": {"grantEpoch": 1},
        "operation": "key.release",
        "proven": True,
        "reason": "",
        "sequence": 1,
        "subject": "payroll",
        "time_ms": 1_795_183_260_000,
    }


def test_an_entry_newer_than_the_checkpoint_is_marked(ta, log: FakeAuditLog) -> None:
    """What is not proven yet is not shown as proven."""
    log.signed_size = 2
    rows = json.loads(ta("audit", "tail", "-o", "json").out)
    assert [row["proven"] for row in rows] == [True, True, False]
    assert "…  2 " in ta("audit", "tail").out


def test_follow_shows_what_comes(ta, authority: FakeAuthority, log: FakeAuditLog) -> None:
    """--follow goes on with proofs under newer checkpoints."""
    new = []

    def come(request: admin.TailAuditRequest) -> list[admin.TailAuditResponse]:
        new.append(request.from_sequence)
        log.add(subject="mail")
        return log._tail(request)

    authority.answer("TailAudit", come)
    result = ta("audit", "tail", "--follow")
    assert result.code is ExitCode.YES
    assert new == [3]
    assert result.out.splitlines()[-1].startswith("✔  3  2026-11-20 14:03:00Z  h-esx-a01")


def edited(log: FakeAuditLog, sequence: int) -> bytes:
    return log.entries[sequence].replace(b"refused", b"granted").replace(b"released", b"not sent")


@pytest.mark.parametrize("command", ["tail", "verify"])
@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (lambda log: log.lie_about_entry(1, edited(log, 1)), ""),
        (lambda log: log.lie_about_entry(2, log.entries[1]), ""),
        (lambda log: log.lie_about_entry(2, b"not json"), ""),
        (
            lambda log: setattr(log, "key", Ed25519PrivateKey.from_private_bytes(bytes(32))),
            "signature",
        ),
        (lambda log: setattr(log, "public", bytes(32)), "not signed by"),
    ],
    ids=["edited", "repeated", "garbage", "forged_signature", "other_key"],
)
def test_a_lie_about_the_log_is_a_no(ta, log: FakeAuditLog, command: str, lie, words: str) -> None:
    """S11: an edited, repeated or unreadable entry and a forged signature end with exit 1."""
    lie(log)
    result = ta("audit", command)
    assert result.code is ExitCode.NO
    assert "[CHECKPOINT_INVALID]" in result.err
    assert words in result.err
    assert result.out == ""


@pytest.mark.parametrize("command", ["tail", "verify"])
def test_a_rewritten_log_is_found_by_who_saw_it_before(
    ta, authority: FakeAuthority, log: FakeAuditLog, command: str
) -> None:
    """N91, S11: a consistent, well-signed rewrite does not extend what this machine saw."""
    authority.checkpoint = log.note().encode()
    assert ta("audit", "tail").code is ExitCode.YES
    assert kept(ta) == 3
    log.rewrite(1, edited(log, 1))
    log.add()
    authority.checkpoint = log.note().encode()
    result = ta("audit", command)
    assert result.code is ExitCode.NO
    assert kept(ta) == 3, "the proof of what was seen before is not given up"


@pytest.mark.parametrize("command", ["tail", "verify"])
def test_a_database_put_back_is_found(
    ta, authority: FakeAuthority, log: FakeAuditLog, command: str
) -> None:
    """N91: fewer entries than this machine saw is a rollback, and the kept checkpoint is echoed."""
    authority.checkpoint = log.note().encode()
    ta("audit", "tail")
    log.entries.pop()
    authority.checkpoint = log.note().encode()
    result = ta("audit", command)
    assert result.code is ExitCode.NO
    assert "went back" in result.err
    assert kept(ta) == 3
    assert authority.metadata[-1]["ta-checkpoint-bin"].splitlines()[1] == b"3"


def test_verify_hashes_everything_again(ta, log: FakeAuditLog) -> None:
    """The whole log against the signed root, over pages."""
    for _ in range(1_200):
        log.add()
    result = ta("audit", "verify")
    assert result.code is ExitCode.YES
    assert result.out.startswith(
        "✔ 1203 entries of authority.example/audit hash to the signed root "
    )
    assert json.loads(ta("audit", "verify", "-o", "json").out)["whole"] is True


def test_verify_finds_a_missing_entry(ta, authority: FakeAuthority, log: FakeAuditLog) -> None:
    """S11: a list with a hole, or one that ends early, is not the log."""

    def with_a_hole(request: admin.ListAuditRequest) -> admin.ListAuditResponse:
        reply = log._list(request)
        del reply.entries[1]
        return reply

    authority.answer("ListAudit", with_a_hole)
    result = ta("audit", "verify")
    assert result.code is ExitCode.NO
    assert "entry 1 is missing" in result.err
    authority.answer("ListAudit", admin.ListAuditResponse())
    assert "the log shows 0" in ta("audit", "verify").err


def test_an_empty_log_is_whole(ta, authority: FakeAuthority) -> None:
    """The root of no entries is sha256 of nothing."""
    FakeAuditLog().serve(authority)
    assert "The audit log is empty" in ta("audit", "tail").err
    assert ta("audit", "verify").code is ExitCode.YES


def test_without_a_pinned_key_the_proof_says_that_it_is_none(make_ta, authority, log) -> None:
    """What is not verified is never called verified."""
    ta = make_ta(authority.address)
    assert "not pinned" in ta("audit", "tail").err
    assert "not pinned" in ta("audit", "verify", "-q").err


def test_every_reply_raises_the_kept_checkpoint(
    ta, authority: FakeAuthority, log: FakeAuditLog
) -> None:
    """Design 7: any reply carries a checkpoint, errors too; the highest is kept and echoed."""
    authority.answer("GetStatus", admin.GetStatusResponse())
    ta("status")
    assert kept(ta) == -1
    assert "ta-checkpoint-bin" not in authority.metadata[-1]
    authority.checkpoint = log.note(1).encode()
    ta("status")
    assert kept(ta) == 1
    authority.checkpoint = log.note(3).encode()
    ta("host", "list")
    assert kept(ta) == 3
    ta("status")
    assert authority.metadata[-1]["ta-checkpoint-bin"] == log.note(3).encode()


@pytest.mark.parametrize(
    ("defect", "words"),
    [
        (lambda log: log.note(3).replace("\n3\n", "\n9\n").encode(), "signature"),
        (lambda log: b"\xff\xfe", "not text"),
        (lambda log: b"", ""),
        (lambda log: b"3", "not kept"),
        (lambda log: log.note(1).encode(), "went back from 2 to 1"),
    ],
    ids=["forged", "not_text", "none", "not_a_note", "older"],
)
def test_a_bad_checkpoint_is_said_and_not_kept(
    ta, authority: FakeAuthority, log: FakeAuditLog, defect, words: str
) -> None:
    """N91: only the pinned key raises the kept checkpoint, and nothing lowers it."""
    authority.answer("GetStatus", admin.GetStatusResponse())
    authority.checkpoint = log.note(2).encode()
    ta("status")
    authority.checkpoint = defect(log)
    result = ta("status", "-q")
    assert result.code is ExitCode.YES
    assert words in result.err
    assert kept(ta) == 2


def test_a_fork_of_the_same_size_is_said(ta, authority: FakeAuthority, log: FakeAuditLog) -> None:
    """N65: two signed trees of one size can't both be the log."""
    authority.answer("GetStatus", admin.GetStatusResponse())
    authority.checkpoint = log.note().encode()
    ta("status")
    log.rewrite(1, edited(log, 1))
    authority.checkpoint = log.note().encode()
    assert "two different audit logs" in ta("status").err


def test_a_damaged_kept_file_is_no_reason_to_fail(
    ta, authority: FakeAuthority, log: FakeAuditLog
) -> None:
    """A broken file is replaced by the next good checkpoint."""
    (ta.home / "checkpoints").mkdir()
    (ta.home / "checkpoints" / "test").write_bytes(b"\xff")
    authority.answer("GetStatus", admin.GetStatusResponse())
    authority.checkpoint = log.note().encode()
    assert ta("status").code is ExitCode.YES
    assert kept(ta) == 3
