"""Requests that nobody honest sends: every field of every call, by the descriptors (N41, N44, N45).

Whatever comes in, the answer is one of the table's errors with exactly one ErrorInfo, nothing is
written, and nothing crashes.
"""

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from support import ek_certificates
from support.authority import RPCS, Answer, Authority, Rpc, call, named, served

from trustauthority.errors import DOMAIN, TrustAuthorityError
from trustauthority.model.evidence import MAX_BOOT_LOG_BYTES
from trustauthority.v1 import attestation_pb2 as at

Code = grpc.StatusCode
HASH = "ab" * 32
CRL = ek_certificates.build_crl(ek_certificates.ca_key(), ek_certificates.CA_NAME)
REQUEST_ID = "r" * 16
HOSTILE = {
    "newline": 'x\n{"event": "rpc", "caller": "forged"}',
    "carriage return": "x\rforged",
    "ANSI": "\x1b[2J\x1b[31mred",
    "path": "../../etc/passwd",
    "NUL": "lab\0",
    "10 kB": "x" * 10_000,
    "homoglyph": "l\u0430b",
    "format": "%s%n%d",
    "upper case": "LAB",
    "dot": ".",
    "65 characters": "x" * 65,
    "space": "lab ",
}
"""No name, id or hash of ours is one of these (N44)."""

GOOD: dict[str, dict[str, Any]] = {
    "GetEnrolmentChallenge": {"cluster": "lab", "ek_public": b"k" * 300},
    "Enrol": {
        "cluster": "lab",
        "name": "h",
        "challenge": b"c" * 100,
        "ek_public": b"k" * 300,
        "ak_public": b"k" * 300,
        "tls_public": b"k" * 300,
        "storage_public": b"k" * 300,
        "tls_certification": at.KeyCertification(attest=b"a", signature=b"s"),
        "storage_certification": at.KeyCertification(attest=b"a", signature=b"s"),
    },
    "Activate": {"pending_id": "a" * 32, "proof": b"p" * 32},
    "CreateKey": {"vm_id": "vm-1"},
    "GetKey": {"vm_id": "vm-1"},
    "RequestKey": {"vm_id": "vm-1", "request_id": REQUEST_ID, "purpose": 2, "move_id": REQUEST_ID},
    "RenewLease": {"vm_id": "vm-1", "request_id": REQUEST_ID, "grant_epoch": 1},
    "GiveBackKey": {"vm_id": "vm-1", "request_id": REQUEST_ID, "grant_epoch": 1},
    "ProtectVm": {"vm_id": "vm-2", "cluster": "lab"},
    "BeginDrill": {"vm_id": "vm-1"},
    "RecordDrill": {
        "vm_id": "vm-1",
        "key_epoch": 1,
        "challenge": b"c" * 32,
        "answer": b"a" * 16,
    },
    "OpenBreakGlass": {
        "vm_id": "vm-9",  # is not there: any words for «why» are accepted
        "host": "h-1",
        "why": "nobody passes, INC-1",
        "ttl_ms": 60_000,
    },
    "CloseBreakGlass": {"glass_id": REQUEST_ID},
    "GetVm": {"vm_id": "vm-1"},
    "ChangeKeyState": {"vm_id": "vm-1", "step": 1, "dry_run": True},
    "DestroyKey": {"vm_id": "vm-1", "dry_run": True},
    "CancelDestroyKey": {"vm_id": "vm-1", "dry_run": True},
    "RollKey": {"vm_id": "vm-1", "dry_run": True},
    "SwitchKey": {"vm_id": "vm-1", "key_epoch": 2, "dry_run": True},
    "ImportKey": {"vm_id": "vm-1", "sealed_key": b"\x01" + b"s" * 60},
    "GetReleasePolicy": {"vm_id": "vm-1"},
    "SetReleasePolicy": {
        "vm_id": "vm-1",
        "document": b'{"format":"ta-release-policy-v1","vm":"vm-1","version":1}',
        "dry_run": True,
    },
    "SetHostRegion": {"host": "h-1"},
    "ReprofileVm": {"vm_id": "vm-1", "profile_digest": b"p" * 32, "dry_run": True},
    "RetireVm": {"vm_id": "vm-1", "why": "test", "dry_run": True},
    "ListCandidates": {"vm_id": "vm-1"},
    "OrderMove": {"vm_id": "vm-1", "destination": "h-1", "dry_run": True},
    "CancelMoveOrder": {"order_id": REQUEST_ID},
    "ReportMoveOrder": {"order_id": REQUEST_ID, "state": 2, "phase": 3},
    "CreateKeyProvider": {"name": "default"},
    "SetDefaultKeyProvider": {"cluster": "lab", "provider": "default"},
    "StartRewrap": {"provider": "default", "dry_run": True},
    "ListKeyHolders": {"host": "h-1"},
    "CheckPlacement": {"candidates": [{"vm_id": "vm-1", "host": "h-1"}]},
    "CreateIntent": {"vm_id": "vm-1", "host": "h-1"},
    "OfferMove": {
        "vm_id": "vm-1",
        "grant_epoch": 1,
        "destination": "h-1",
        "request_id": REQUEST_ID,
    },
    "SwitchMove": {"vm_id": "vm-1", "request_id": REQUEST_ID},
    "AbortMove": {"vm_id": "vm-1", "request_id": REQUEST_ID},
    "GetMove": {"vm_id": "vm-1", "request_id": REQUEST_ID},
    "CreateCluster": {"name": "new"},
    "AddAnchor": {"cluster": "lab", "kind": 2, "ek_sha256": b"h" * 32, "dry_run": True},
    "RemoveAnchor": {"cluster": "lab", "anchor_id": HASH},
    "AddCrl": {"cluster": "lab", "crl": CRL, "dry_run": True},
    "RemoveCrl": {"cluster": "lab", "crl_id": HASH},
    "AddInventory": {
        "entries": [{"cluster": "lab", "ek_sha256": HASH, "name": "h"}],
        "dry_run": True,
    },
    "RemoveInventory": {"cluster": "lab", "ek_sha256": HASH},
    "ApplyPolicy": {"cluster": "lab", "document": 'name = "x"\n', "dry_run": True},
    "GetPolicy": {"cluster": "lab"},
    "CaptureBaseline": {"cluster": "lab", "name": "b", "host": "h-1"},
    "PredictBaseline": {"cluster": "lab", "name": "b", "host": "h-1"},
    "ApproveBaseline": {"cluster": "lab", "name": "b", "sha256": HASH, "dry_run": True},
    "RetireBaseline": {"cluster": "lab", "name": "b", "dry_run": True},
    "DiffBaseline": {"cluster": "lab", "name": "b", "host": "h-1"},
    "GetHost": {"host": "h-1"},
    "AdmitHost": {"host": "h-1", "approval_sha256": HASH, "dry_run": True},
    "RebindHost": {
        "host": "h-1",
        "new_host_id": "h-2",
        "approval_sha256": HASH,
        "dry_run": True,
    },
    "RemoveHost": {"host": "h-1", "dry_run": True},
    "RevokeHost": {"host": "h-1", "why": "test", "dry_run": True},
    "ReinstateHost": {"host": "h-1", "why": "test", "dry_run": True},
    "DrainHost": {"host": "h-1", "why": "test", "dry_run": True},
    "UndrainHost": {"host": "h-1", "dry_run": True},
    "RevokeAll": {"why": "test", "dry_run": True},
    "GetEvidence": {"host": "h-1"},
    "GetReport": {"host": "h-1"},
    "IssueIdentity": {"name": "person", "roles": [1], "certificate_request": b"-"},
    "RevokeIdentity": {"name": "person"},
}
"""A request of each call that is well formed, so that the one wrong field is what is refused."""

FREE_TEXT = {"why", "detail", "tpm", "document", "role", "command_line", "section"}
"""Fields that people write sentences or documents into: still one line, or TOML."""
IGNORED = {"added_by"}
"""Set by the server, whatever a client sends."""


def known_reasons(kind: type[TrustAuthorityError] = TrustAuthorityError) -> set[str]:
    return {kind.reason}.union(*(known_reasons(each) for each in kind.__subclasses__()))


@pytest.fixture
async def authority(tmp_path):
    async with served(tmp_path) as running:
        admin = running.channel(running.admin)
        for name in ("CreateCluster", "ProtectVm"):
            values = {
                "CreateCluster": {"name": "lab"},
                "ProtectVm": {"vm_id": "vm-1", "cluster": "lab"},
            }
            rpc = named(name)
            assert (await call(admin, rpc, rpc.request(**values[name]))).code is Code.OK
        yield running
        assert running.journal.crashes == []


async def channels(authority: Authority) -> dict[str, grpc.aio.Channel]:
    """Somebody who may make each kind of call."""
    return {
        "enrol": authority.channel(None, "enrol"),
        "host": authority.channel(await authority.host("h-1")),
        "admin": authority.channel(authority.admin),
    }


def kind_of(rpc: Rpc) -> str:
    from trustauthority.rpc.authorize import rule_of

    rule = rule_of(rpc.path)
    if rpc.service == "EnrolmentService":
        return "enrol"
    return "host" if rule.host else "admin"


def fields_of(rpc: Rpc, *kinds: int) -> Iterator[tuple[str, ...]]:
    """The paths of all fields of some types, through nested messages."""
    yield from _fields(rpc.request.DESCRIPTOR, kinds, ())


def _fields(
    descriptor: Any, kinds: tuple[int, ...], path: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    for field in descriptor.fields:
        if field.type == Field.TYPE_MESSAGE:
            if field.message_type.full_name.startswith("trustauthority."):
                yield from _fields(field.message_type, kinds, (*path, field.name))
        elif field.type in kinds:
            yield (*path, field.name)


def spoiled(rpc: Rpc, path: tuple[str, ...], value: Any) -> Message:
    """The good request with one field set to something else."""
    request = rpc.request(**GOOD.get(rpc.name, {}))
    inner: Any = request
    for name in path[:-1]:
        inner = getattr(inner, name)
        if hasattr(inner, "add"):
            inner = inner[0] if len(inner) else inner.add()
    if inner.DESCRIPTOR.fields_by_name[path[-1]].is_repeated:
        getattr(inner, path[-1])[:] = [value]
    else:
        setattr(inner, path[-1], value)
    return request


def check_shape(rpc: Rpc, answer: Answer) -> None:
    """An error of ours: one ErrorInfo of the table, bounded, never INTERNAL or UNKNOWN."""
    where = (str(rpc), answer.code, answer.text, answer.reason)
    assert answer.code not in (Code.INTERNAL, Code.UNKNOWN, Code.UNIMPLEMENTED), where
    if answer.code is Code.OK:
        return
    assert len(answer.infos) == 1, where
    assert answer.infos[0].domain == DOMAIN, where
    assert answer.reason in known_reasons() - {"INTERNAL"}, where
    assert re.fullmatch(r"[ -~…а-яl\u202e\uff4c]*", answer.text), where
    assert all(len(value) <= 1024 for value in answer.metadata.values()), where
    assert "ta-checkpoint-bin" in answer.trailing, where


UNARY = tuple(rpc for rpc in RPCS if not rpc.streams_requests)
WITH_TEXT = tuple(rpc for rpc in UNARY if list(fields_of(rpc, Field.TYPE_STRING)))
WITH_BYTES = tuple(rpc for rpc in UNARY if list(fields_of(rpc, Field.TYPE_BYTES)))
NUMBERS = (
    Field.TYPE_INT32,
    Field.TYPE_INT64,
    Field.TYPE_UINT32,
    Field.TYPE_UINT64,
    Field.TYPE_ENUM,
)
WITH_NUMBERS = tuple(
    rpc for rpc in UNARY if not rpc.streams_replies and list(fields_of(rpc, *NUMBERS))
)


async def test_text_that_is_no_name(authority):
    """N44: ids with newlines, escapes, paths, NUL, 10 kB, look-alikes: refused by grammar, unwritten."""
    callers = await channels(authority)
    before = await authority.dump()
    for rpc in WITH_TEXT:
        for path in fields_of(rpc, Field.TYPE_STRING):
            for what, value in HOSTILE.items():
                answer = await call(callers[kind_of(rpc)], rpc, spoiled(rpc, path, value))
                where = (str(rpc), path, what, answer.code, answer.text)
                check_shape(rpc, answer)
                if path[-1] in FREE_TEXT | IGNORED:
                    continue
                assert answer.code is Code.INVALID_ARGUMENT, where
                if answer.reason == "INVALID_REQUEST":
                    assert path[-1] in answer.metadata["field"], where
        assert await authority.dump() == before, str(rpc)


async def test_free_text_is_one_line(authority):
    """N44: what goes into the audit log as a reason is short and on one line."""
    admin = authority.channel(authority.admin)
    for name in ("RevokeHost", "ReinstateHost", "RevokeAll"):
        for what in ("newline", "carriage return", "ANSI", "NUL", "10 kB"):
            answer = await call(admin, named(name), spoiled(named(name), ("why",), HOSTILE[what]))
            assert (answer.code, answer.metadata["field"]) == (Code.INVALID_ARGUMENT, "why"), what


async def test_empty_requests(authority):
    """N44: a request with nothing in it is answered or refused, never a crash; nothing is written."""
    callers = await channels(authority)
    for rpc in UNARY:
        if rpc.name in {"RenewIdentity", "RevokeAll", "ExportEscrow"}:
            continue  # they need nothing, by design
        before = await authority.dump()
        answer = await call(callers[kind_of(rpc)], rpc)
        check_shape(rpc, answer)
        if rpc.name in GOOD:
            assert (answer.code, answer.reason) == (Code.INVALID_ARGUMENT, "INVALID_REQUEST"), rpc
        assert await authority.dump() == before, str(rpc)


async def test_each_missing_field(authority):
    """N44: every field that a request needs is missed; leaving it out writes nothing."""
    callers = await channels(authority)
    before = await authority.dump("audit")
    for name, values in GOOD.items():
        rpc = named(name)
        optional = {"dry_run", "why", "document", "ek_intermediates", "provider"}
        for field in values.keys() - optional:
            request = rpc.request(**values)
            request.ClearField(field)
            answer = await call(callers[kind_of(rpc)], rpc, request)
            check_shape(rpc, answer)
            wrong_proof = field in {"challenge", "proof"}  # no token at all is a wrong token
            assert answer.code is Code.INVALID_ARGUMENT or wrong_proof, (name, field, answer)
            assert answer.code is not Code.OK
    assert await authority.dump("audit") == before


async def test_ids_of_nothing(authority):
    """N44: a well-formed id that names nothing is NOT_FOUND to people and writes nothing."""
    admin = authority.channel(authority.admin)
    before = await authority.dump()
    names = {"cluster", "host", "vm_id", "new_host_id"}
    seen = 0
    for rpc in UNARY:
        if kind_of(rpc) != "admin" or rpc.name in {"ProtectVm", "CheckPlacement"}:
            continue
        if rpc.name.startswith("List"):
            continue
        for path in fields_of(rpc, Field.TYPE_STRING):
            if path[-1] in names:
                answer = await call(admin, rpc, spoiled(rpc, path, "never-heard-of"))
                check_shape(rpc, answer)
                assert answer.code is Code.NOT_FOUND, (str(rpc), path, answer.code, answer.text)
                assert answer.metadata["kind"], (str(rpc), path)
                seen += 1
    assert seen > 20
    assert await authority.dump() == before


async def test_bytes_of_wrong_sizes(authority):
    """N44: hashes, keys and certificates of any size but their own are refused or change nothing."""
    callers = await channels(authority)
    for rpc in WITH_BYTES:
        for path in fields_of(rpc, Field.TYPE_BYTES):
            before = await authority.dump()
            for value in (b"", b"\0", b"x" * 31, b"\xff" * 33, b"x" * 9_000, b"x" * 100_000):
                request = spoiled(rpc, path, value)
                if rpc.name == "ProtectVm" and not value:
                    continue  # a VM without a profile is allowed
                if path == ("signature",) and not value:
                    continue  # so is a policy that has no owner
                if path == ("replaces",) and not value:
                    continue  # it has none yet
                if rpc.name == "AddAnchor" and path == ("certificate",):
                    request.kind = 1
                answer = await call(callers[kind_of(rpc)], rpc, request)
                check_shape(rpc, answer)
                if rpc.name != "GetEnrolmentChallenge" or not 0 < len(value) <= 8192:
                    ignored = rpc.name == "AddAnchor" and len(value) == 32
                    assert answer.code is not Code.OK or ignored, (str(rpc), path, len(value))
            assert await authority.dump() == before, (str(rpc), path)


async def test_numbers_at_their_edges(authority):
    """N84, N44: negative and enormous numbers neither crash nor wrap around."""
    callers = await channels(authority)
    for rpc in WITH_NUMBERS:
        for path in fields_of(rpc, *NUMBERS):
            for value in (-(2**63), -(2**31), -1, 0, 99, 2**31 - 1, 2**63 - 1):
                before = await authority.dump("audit")
                try:
                    request = spoiled(rpc, path, value)
                except ValueError:
                    continue  # not a number of this type
                answer = await call(callers[kind_of(rpc)], rpc, request)
                check_shape(rpc, answer)
                if answer.code is not Code.OK:
                    assert await authority.dump("audit") == before, (str(rpc), path, value)


@pytest.mark.parametrize(
    "garbage", [b"\xff\xff\xff\xff", b"\x0a\x02\xc3\x28", b"\x0a\x7f"], ids=repr
)
async def test_bytes_that_are_no_message(authority, garbage):
    """N45: protobuf that does not decode, or holds no UTF-8, is a bad request with an ErrorInfo."""
    callers = await channels(authority)
    before = await authority.dump()
    decodes = 0
    for rpc in RPCS:
        try:
            rpc.request.FromString(garbage)
        except Exception:  # noqa: BLE001
            answer = await call(callers[kind_of(rpc)], rpc, garbage, requests=[garbage])
            assert (answer.code, answer.reason) == (Code.INVALID_ARGUMENT, "INVALID_REQUEST"), rpc
            check_shape(rpc, answer)
        else:
            decodes += 1  # messages without a first field take it as an unknown one
    assert decodes < len(RPCS) / 2
    assert await authority.dump() == before


# --- messages, metadata, streams -------------------------------------------------------------


async def test_a_message_of_five_mebibytes(authority):
    """N41: refused before it is decoded, for every call, and the authority still answers."""
    callers = await channels(authority)
    for rpc in RPCS[::6]:
        content = b"\x0a" + b"\x80\x80\xc0\x02" + b"x" * (5 * 1024 * 1024)
        answer = await call(callers[kind_of(rpc)], rpc, content, requests=[content])
        assert answer.code is Code.RESOURCE_EXHAUSTED, (str(rpc), answer)
    assert (await call(callers["admin"], named("GetStatus"))).code is Code.OK


async def test_metadata_of_twenty_kilobytes(authority):
    """N41: refused, and the next call of the same client works."""
    admin = authority.channel(authority.admin)
    answer = await call(admin, named("GetStatus"), metadata=[("x-long", "x" * 21_000)])
    assert answer.code is Code.RESOURCE_EXHAUSTED
    assert authority.journal.of("rpc")[-1]["method"].endswith("ProtectVm")
    assert (await call(admin, named("GetStatus"))).code is Code.OK


@pytest.mark.parametrize("how", [grpc.Compression.Gzip, grpc.Compression.Deflate], ids=str)
async def test_a_compressed_message(authority, how):
    """N41, N42: compression is off; nothing of ours is inflated."""
    admin = authority.channel(authority.admin, options=[])
    policy = spoiled(named("ApplyPolicy"), ("document",), "#" * 50_000)
    answer = await call(admin, named("ApplyPolicy"), policy, compression=how)
    assert answer.code is Code.UNIMPLEMENTED
    assert (await call(admin, named("ApplyPolicy"), policy)).code is not Code.UNIMPLEMENTED


async def test_a_reply_is_not_compressed(authority):
    """N41: keys and compression don't mix; a client that would like it gets plain bytes."""
    admin = authority.channel(authority.admin)
    stub = admin.unary_unary(named("GetReportKeys").path)
    going = stub(b"", metadata=(("grpc-accept-encoding", "gzip"),), timeout=5)
    await going
    assert "grpc-encoding" not in dict(await going.initial_metadata())


async def test_a_policy_with_a_thousand_mistakes(authority):
    """N44: the answer names what fits; it does not outgrow the metadata that a client accepts."""
    admin = authority.channel(authority.admin)
    document = "\n".join(f"nonsense_number_{n} = 1" for n in range(1000))
    answer = await call(
        admin, named("ApplyPolicy"), spoiled(named("ApplyPolicy"), ("document",), document)
    )
    assert (answer.code, answer.reason) == (Code.INVALID_ARGUMENT, "POLICY_INVALID")
    assert "nonsense_number_0" in answer.text
    assert len(answer.text.encode()) <= 1024


async def test_a_policy_of_long_non_ascii_keys(authority):
    """N44: percent-encoding triples a text; the answer still arrives."""
    admin = authority.channel(authority.admin)
    document = "\n".join(f'"ж{n}" = 1' for n in range(1000))
    answer = await call(
        admin, named("ApplyPolicy"), spoiled(named("ApplyPolicy"), ("document",), document)
    )
    assert (answer.code, answer.reason) == (Code.INVALID_ARGUMENT, "POLICY_INVALID")


CHUNK = b"x" * 900_000


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [at.AttestRequest()],
        [at.AttestRequest(boot_log_chunk=b"x")],
        [at.AttestRequest(ima_chunk=b"x"), at.AttestRequest(quote=at.QuoteEvidence())],
        [at.AttestRequest(quote=at.QuoteEvidence())] * 2,
        [at.AttestRequest(quote=at.QuoteEvidence())],
        [at.AttestRequest(quote=at.QuoteEvidence(boot_log_sha256=b"x"), boot_log_chunk=b"")],
        [
            at.AttestRequest(quote=at.QuoteEvidence()),
            *[at.AttestRequest(boot_log_chunk=CHUNK)] * (MAX_BOOT_LOG_BYTES // len(CHUNK) + 1),
        ],
    ],
    ids=[
        "nothing",
        "empty part",
        "log first",
        "IMA first",
        "two quotes",
        "empty quote",
        "no quote",
        "long log",
    ],
)
async def test_evidence_out_of_order(authority, parts):
    """N41, N12: a stream with parts missing, twice, or without end changes nothing."""
    host = authority.channel(await authority.host("h-1"))
    before = await authority.dump()
    answer = await call(host, named("Attest"), requests=parts)
    check_shape(named("Attest"), answer)
    assert answer.code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION), answer
    assert await authority.dump() == before
