"""What rides on every answer: one ErrorInfo, the checkpoint, the request id; and how streams end.

N91 (a checkpoint from the future stops releases), N04 and S12 (a crash is INTERNAL and says nothing),
N26 (a caller that gave up), AIP-193.
"""

import asyncio
import json
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.authority import ORIGIN, RPCS, Authority, call, halted, named, newest, note_of, served

from trustauthority import errors
from trustauthority.codec.tlog import open_checkpoint
from trustauthority.errors import DOMAIN, TrustAuthorityError
from trustauthority.model.catalogue import Role
from trustauthority.rpc import attestation
from trustauthority.rpc.errors import CODES, code_of
from trustauthority.services.audit import AuditService
from trustauthority.services.hosts import HostService
from trustauthority.v1 import admin_pb2 as admin
from trustauthority.v1 import attestation_pb2 as at

Code = grpc.StatusCode
ECHO = "ta-checkpoint-bin"


STATUS, LIST_HOSTS, EVIDENCE = named("GetStatus"), named("ListHosts"), named("GetEvidence")


@pytest.fixture
async def authority(tmp_path):
    async with served(tmp_path) as running:
        rpc = named("CreateCluster")
        answer = await call(running.channel(running.admin), rpc, rpc.request(name="lab"))
        assert answer.code is Code.OK
        yield running


def subclasses(kind: type[TrustAuthorityError]) -> list[type[TrustAuthorityError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in subclasses(child))]


EVERY_ERROR = subclasses(TrustAuthorityError)[1:]


def raised(kind: type[TrustAuthorityError], **metadata: str | int) -> TrustAuthorityError:
    if kind is errors.MalformedEvidence:
        return kind("is wrong", part="quote", offset=7)
    return kind("is wrong", **metadata)


# --- the error table -------------------------------------------------------------------------


async def test_an_error_arrives_as_itself(authority, monkeypatch):
    """AIP-193: of each class code, one ErrorInfo with reason and metadata, RetryInfo where it may help."""
    raising: list[TrustAuthorityError] = []

    async def refuse(*_args, **_options):
        raise raising[-1]

    monkeypatch.setattr(HostService, "page", refuse)
    monkeypatch.setattr("trustauthority.rpc.hosts.evidence_bundle", refuse)
    channel = authority.channel(authority.admin)
    for kind in EVERY_ERROR:
        raising.append(raised(kind, field="host"))
        for rpc, request in (
            (LIST_HOSTS, admin.ListHostsRequest()),
            (EVIDENCE, admin.GetEvidenceRequest(host="h")),
        ):
            answer = await call(channel, rpc, request)
            assert (answer.code, answer.reason) == (code_of(kind), kind.reason)
            assert answer.infos[0].domain == DOMAIN
            assert answer.metadata == raising[-1].metadata
            assert answer.text == raising[-1].message
            retries = issubclass(kind, errors.DependencyUnavailable | errors.RateLimited)
            delays = [each.retry_delay.ToMilliseconds() > 0 for each in answer.retries]
            assert delays == ([True] if retries else []), kind
            assert answer.trailing[ECHO]
            line = authority.journal.of("rpc")[-1]
            assert (line["code"], line["reason"]) == (code_of(kind).name, kind.reason)
    assert authority.journal.crashes == []


async def test_the_delay_of_an_error_is_the_delay_told(authority, monkeypatch):
    """AIP-193: when a fence says how long it stands, RetryInfo says so too."""

    async def refuse(*_args, **_options):
        raise errors.GrantHeldElsewhere("held", retryAfterMs=4_321)

    monkeypatch.setattr(HostService, "page", refuse)
    answer = await call(authority.channel(authority.admin), LIST_HOSTS)
    (retry,) = answer.retries
    assert retry.retry_delay.ToMilliseconds() == 4_321


def test_no_error_of_ours_is_internal_by_accident():
    """S12: each class but the root has a code that says what to do, none falls to INTERNAL."""
    assert {kind for kind in EVERY_ERROR if code_of(kind) is Code.INTERNAL} == set()
    assert set(CODES) <= {TrustAuthorityError, *EVERY_ERROR}


CRASHES = (
    RuntimeError("canary-secret in a message"),
    KeyError("canary-secret"),
    AssertionError("canary-secret"),
    ZeroDivisionError("canary-secret"),
    RecursionError("canary-secret"),
    TimeoutError("canary-secret"),
    UnicodeDecodeError("utf-8", b"canary-secret", 0, 1, "canary-secret"),
    grpc.RpcError("canary-secret"),
)


async def test_a_crash_is_internal_and_says_nothing(authority, monkeypatch):
    """S12, N04, N69: an id to look up in the log, no text of the exception, no state changed."""
    failures: list[Exception] = []

    async def crash(*_args, **_options):
        raise failures[-1]

    monkeypatch.setattr(HostService, "page", crash)
    monkeypatch.setattr("trustauthority.rpc.hosts.evidence_bundle", crash)
    before = await authority.dump()
    channel = authority.channel(authority.admin)
    for failure in CRASHES:
        failures.append(failure)
        for rpc, request in (
            (LIST_HOSTS, admin.ListHostsRequest()),
            (EVIDENCE, admin.GetEvidenceRequest(host="h")),
        ):
            answer = await call(channel, rpc, request)
            assert (answer.code, answer.reason) == (Code.INTERNAL, "INTERNAL")
            error_id, where, logged = authority.journal.crashes[-1]
            assert answer.metadata == {"errorId": error_id}
            assert (where, logged) == (rpc.path, failure)
            assert "canary" not in answer.text + str(answer.trailing)
            assert ECHO in answer.trailing
    assert await authority.dump() == before
    assert (await call(channel, STATUS)).code is Code.OK


async def test_a_crash_in_the_middle_of_a_write_writes_nothing(authority, monkeypatch):
    """S9, S12: the row and its audit entry are one; when the entry can't be made there is no row."""
    from trustauthority.adapters.sql.audit import SqlAuditLog

    async def crash(*_args):
        raise RuntimeError("no audit")

    before = await authority.dump()
    monkeypatch.setattr(SqlAuditLog, "append", crash)
    rpc = named("CreateCluster")
    answer = await call(authority.channel(authority.admin), rpc, rpc.request(name="other"))
    assert answer.code is Code.INTERNAL
    assert await authority.dump() == before


# --- the request id --------------------------------------------------------------------------


async def test_a_request_id_comes_back_and_is_logged(authority):
    """N27: as sent, on answers and on errors, so that both logs can be joined."""
    channel = authority.channel(authority.admin)
    for rpc, code in ((STATUS, Code.OK), (named("GetHost"), Code.INVALID_ARGUMENT)):
        answer = await call(channel, rpc, metadata=[("ta-request-id", "0123456789abcdef")])
        assert answer.code is code
        assert answer.trailing["ta-request-id"] == "0123456789abcdef"
        assert authority.journal.of("rpc")[-1]["request_id"] == "0123456789abcdef"


@pytest.mark.parametrize("sent", [None, "", "x" * 65, "x" * 5000], ids=lambda sent: str(sent)[:4])
async def test_a_missing_or_endless_request_id_is_replaced(authority, sent):
    """N44: the server makes one, and logs and answers with that."""
    metadata = [] if sent is None else [("ta-request-id", sent)]
    answer = await call(authority.channel(authority.admin), STATUS, metadata=metadata)
    made = answer.trailing["ta-request-id"]
    assert len(made) == 32
    assert authority.journal.of("rpc")[-1]["request_id"] == made


# --- checkpoints -----------------------------------------------------------------------------


async def test_every_answer_carries_the_newest_checkpoint(authority):
    """N91: signed by the audit key, over the entries that there are after the call itself."""
    channel = authority.channel(authority.admin)
    sizes = []
    for name in ("a", "b", "b"):  # the third is refused: ALREADY_EXISTS
        rpc = named("CreateCluster")
        answer = await call(channel, rpc, rpc.request(name=name))
        checkpoint = open_checkpoint(
            answer.trailing[ECHO].decode(),
            origin=ORIGIN,
            public_key=authority.process.audit.public_key,
        )
        sizes.append(checkpoint.size)
    assert sizes == [sizes[0], sizes[0] + 1, sizes[0] + 1]
    async with authority.store.snapshot() as tx:
        assert checkpoint.root == await tx.audit.root(checkpoint.size)


async def test_strangers_see_a_checkpoint_too(authority):
    """N91: a refusal before anybody is known carries it, and so does the enrolment listener."""
    ghost = await authority.identity("ghost", registered=False)
    for credentials, listener in ((ghost, "mutual"), (None, "enrol")):
        answer = await call(authority.channel(credentials, listener), STATUS)
        assert answer.code is Code.UNAUTHENTICATED
        assert answer.trailing[ECHO] == await newest(authority)


async def test_an_echo_of_ours_is_welcome(authority):
    """N91: the newest, an older one, and the empty log are all part of ours."""
    admin_channel = authority.channel(authority.admin)
    async with authority.store.snapshot() as tx:
        old = note_of(authority, size=1, root=await tx.audit.root(1))
        empty = note_of(authority, size=0, root=await tx.audit.root(0))
    for note in (old, empty, await newest(authority)):
        assert (await call(admin_channel, STATUS, metadata=[(ECHO, note)])).code is Code.OK
    assert await halted(authority) == ""


def other_key():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(b"\7" * 32)


FORGERIES = {
    "another key": lambda a: note_of(a, size=99, root=b"r" * 32, key=other_key()),
    "another log": lambda a: note_of(a, size=99, root=b"r" * 32, origin="other.example"),
    "a changed size": lambda a: note_of(a, size=9, root=b"r" * 32).replace(b"\n9\n", b"\n8\n"),
    "a cut signature": lambda a: note_of(a, size=9, root=b"r" * 32)[:-10],
    "no text": lambda _a: b"\n",
    "not UTF-8": lambda _a: b"\xff" * 100,
    "4 kB and a byte": lambda _a: b"x" * 4097,
    "NUL": lambda a: note_of(a, size=9, root=b"r" * 32) + b"\0",
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_checkpoint_that_we_did_not_sign_does_nothing(authority, forgery):
    """N91: nobody can stop releases with a note that proves nothing; the call is refused."""
    before = await authority.dump()
    note = FORGERIES[forgery](authority)
    channel = authority.channel(authority.admin)
    rpc = named("CreateCluster")
    answer = await call(channel, rpc, rpc.request(name="other"), metadata=[(ECHO, note)])
    assert (answer.code, answer.reason) == (Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert answer.metadata == {"field": ECHO}
    assert await halted(authority) == ""
    assert await authority.dump() == before


async def test_a_stranger_can_stop_nothing(authority):
    """N91: an echo is looked at only after the caller was let in."""
    note = note_of(authority, size=10_000, root=b"r" * 32)
    ghost = await authority.identity("ghost", registered=False)
    for credentials, listener, rpc in (
        (ghost, "mutual", STATUS),
        (await authority.identity("no-role"), "mutual", STATUS),
        (None, "enrol", named("Activate")),
    ):
        answer = await call(authority.channel(credentials, listener), rpc, metadata=[(ECHO, note)])
        assert answer.reason != "ROLLBACK_DETECTED", listener
    assert await halted(authority) == ""


@pytest.mark.parametrize("what", ["ahead", "forked"])
async def test_a_signed_checkpoint_that_we_do_not_contain_stops_releases(tmp_path, authority, what):
    """N91, N64: the database was rolled back or forked; durable over a restart, told on the status."""
    size = 10_000 if what == "ahead" else 1
    note = note_of(authority, size=size, root=b"r" * 32)
    channel = authority.channel(authority.admin)
    rpc = named("CreateCluster")
    answer = await call(channel, rpc, rpc.request(name="other"), metadata=[(ECHO, note)])
    assert (answer.code, answer.reason) == (Code.FAILED_PRECONDITION, "ROLLBACK_DETECTED")
    assert await halted(authority)
    async with authority.store.snapshot() as tx:
        assert [each.cluster_id for each in await tx.catalogue.clusters()] == ["lab"]
    assert len(authority.journal.of("rollback_detected")) == 1
    await authority.process.store.close()
    async with served(tmp_path) as again:
        assert await halted(again)
        status = (await call(again.channel(again.admin), STATUS)).reply
        (item,) = (item for item in status.items if item.name == "releases")
        assert item.health == admin.HEALTH_ERROR
        assert "stopped" in item.detail


async def test_two_echoes_are_not_a_way_around(authority):
    """N91: a good echo does not cover one from the future: there is one, or the call is refused."""
    good, ahead = await newest(authority), note_of(authority, size=9_999, root=b"r" * 32)
    for pair in ([(ECHO, good), (ECHO, ahead)], [(ECHO, ahead), (ECHO, good)]):
        answer = await call(authority.channel(authority.admin), STATUS, metadata=pair)
        assert (answer.code, answer.metadata) == (Code.INVALID_ARGUMENT, {"field": ECHO})


# --- standard services -----------------------------------------------------------------------


async def test_health_answers_per_service(authority):
    """N02: whoever the handshake let in may ask whether the process serves."""
    stub = health_pb2_grpc.HealthStub(authority.channel(authority.admin))
    for service in ("", "trustauthority.v1.HostService", "trustauthority.v1.KeyProviderService"):
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=5)
    assert caught.value.code() is Code.NOT_FOUND
    assert authority.journal.crashes == []


async def test_health_can_be_watched(authority):
    """N02: the stream of the standard service works behind the interceptor."""
    stub = health_pb2_grpc.HealthStub(authority.channel(authority.admin))
    stream = stub.Watch(health_pb2.HealthCheckRequest(), timeout=5)
    assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
    stream.cancel()
    assert authority.journal.crashes == []


async def test_reflection_lists_the_services(authority):
    """N02: reflection answers whoever was let in, and lists what is served."""
    stub = reflection_pb2_grpc.ServerReflectionStub(authority.channel(authority.admin))
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    stream = stub.ServerReflectionInfo(iter([asked]), timeout=5)
    listed = {each.name for each in (await stream.read()).list_services_response.service}
    stream.cancel()
    served_here = {f"trustauthority.v1.{rpc.service}" for rpc in RPCS}
    assert served_here - {"trustauthority.v1.EnrolmentService"} <= listed
    assert "trustauthority.v1.EnrolmentService" not in listed


# --- streams, deadlines, the end --------------------------------------------------------------


async def until(condition) -> None:
    """Wait (bounded) for something that happens in the background."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


async def test_tailing_the_audit_log_ends_when_the_caller_hangs_up(authority):
    """N40: entries come as they are written; hanging up leaves no task and one log line behind."""
    channel = authority.channel(authority.admin)
    tail = named("TailAudit")
    stream = channel.unary_stream(
        tail.path,
        request_serializer=tail.request.SerializeToString,
        response_deserializer=tail.reply.FromString,
    )(tail.request(from_sequence=-1), timeout=10)
    last = json.loads((await stream.read()).entry.content)
    assert last["operation"] == "cluster.create"
    create = named("CreateCluster")
    await call(channel, create, create.request(name="next"))
    assert json.loads((await stream.read()).entry.content)["subject"] == "next"
    stream.cancel()
    await until(lambda: authority.journal.of("rpc")[-1]["method"] == tail.path)
    assert authority.journal.of("rpc")[-1]["code"] == "CANCELLED"
    assert authority.journal.crashes == []


async def test_watching_ends_when_the_host_hangs_up(authority):
    """N25: a revocation is pushed; a host that hung up is forgotten, not queued for."""
    host = authority.channel(await authority.host("h-1"))
    watch = named("WatchHost")
    stream = host.unary_stream(
        watch.path,
        request_serializer=watch.request.SerializeToString,
        response_deserializer=watch.reply.FromString,
    )(watch.request(), timeout=10)
    assert (await stream.read()).detail == "watching"
    revoke = named("RevokeHost")
    admin_channel = authority.channel(authority.admin)
    request = revoke.request(host="h-1", why="gone bad")
    assert (await call(admin_channel, revoke, request)).code is Code.OK
    wish = await stream.read()
    assert (wish.wish, wish.detail) == (at.HOST_WISH_REVOKED, "gone bad")
    assert authority.process.watchers._queues
    stream.cancel()
    await until(lambda: not authority.process.watchers._queues)
    assert authority.journal.crashes == []


async def test_a_watch_says_that_it_is_alive(authority, monkeypatch):
    """N85: a host can tell a quiet stream from a dead one."""
    monkeypatch.setattr(attestation, "STILL_HERE_S", 0.02)
    host = authority.channel(await authority.host("h-1"))
    watch = named("WatchHost")
    stream = host.unary_stream(
        watch.path, request_serializer=None, response_deserializer=watch.reply.FromString
    )(b"", timeout=5)
    assert [(await stream.read()).detail for _ in range(3)] == ["watching", *["still here"] * 2]
    stream.cancel()


async def test_a_deadline_ends_a_call_that_waits_and_writes_nothing(authority):
    """N26, N38: a caller that gave up while the database was busy changed nothing, and blocks nobody."""
    rpc = named("CreateCluster")
    channel = authority.channel(authority.admin)
    async with authority.store.transaction():
        began = time.monotonic()
        answer = await call(channel, rpc, rpc.request(name="late"), timeout_s=0.2)
        assert answer.code is Code.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 2
        assert (await call(channel, STATUS)).code is Code.OK  # reads go on
    await until(lambda: authority.journal.of("rpc")[-1]["code"] in ("CANCELLED", "OK"))
    clusters = (await call(channel, named("ListClusters"))).reply.clusters
    assert [each.name for each in clusters] == ["lab"]
    assert (await call(channel, rpc, rpc.request(name="late"))).code is Code.OK


async def test_a_busy_database_is_told_as_such(authority, monkeypatch):
    """N38: UNAVAILABLE with RetryInfo, not a hang."""
    monkeypatch.setattr(authority.store, "_busy_timeout_ms", 50)
    rpc = named("CreateCluster")
    async with authority.store.transaction():
        answer = await call(
            authority.channel(authority.admin), rpc, rpc.request(name="late"), timeout_s=5
        )
    assert (answer.code, answer.reason) == (Code.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert answer.retries


async def test_stopping_finishes_what_runs_and_ends_what_does_not_end(tmp_path):
    """N72: a call in flight is answered, endless streams end, nothing waits for the whole drain."""
    async with served(tmp_path, drain_s=8) as authority:
        create, host_watch, tail = named("CreateCluster"), named("WatchHost"), named("TailAudit")
        channel = authority.channel(authority.admin)
        await call(channel, create, create.request(name="lab"))
        host = authority.channel(await authority.host("h-1"))
        watching = host.unary_stream(
            host_watch.path, response_deserializer=host_watch.reply.FromString
        )(b"")
        tailing = channel.unary_stream(tail.path, response_deserializer=tail.reply.FromString)(b"")
        await watching.read()
        await tailing.read()
        async with authority.store.transaction():
            waiting = asyncio.create_task(call(channel, create, create.request(name="last")))
            await until(lambda: authority.store._writer._waiters)
            began = time.monotonic()
            stopping = asyncio.create_task(_stop(authority))
            await until(authority.process.stopping.is_set)
        assert (await waiting).code is Code.OK
        await stopping
        assert time.monotonic() - began < 4
        assert await _rest(watching) == 0
        await _rest(tailing)
        entries, _ = await authority.process.audit.entries(start=0, limit=100)
        assert [json.loads(each.content)["subject"] for each in entries][-1] == "last"


async def _rest(stream) -> int:
    count = 0
    while await stream.read() is not grpc.aio.EOF:
        count += 1
    return count


async def _stop(authority: Authority) -> None:
    from trustauthority.main.compose import drain

    await drain(authority.process, 8)


async def test_the_caller_of_one_call_is_not_the_caller_of_another(authority):
    """N62: who calls is kept per call, also when many different callers come at once."""
    names = [f"person-{number}" for number in range(12)]
    create = named("CreateCluster")
    people = [authority.channel(await authority.identity(name, Role.POLICY)) for name in names]
    await asyncio.gather(
        *(
            call(channel, create, create.request(name=f"of-{name}"))
            for channel, name in zip(people, names, strict=True)
        )
    )
    entries, _ = await AuditService.entries(authority.process.audit, start=0, limit=100)
    made = [json.loads(each.content) for each in entries]
    for name in names:
        (entry,) = (each for each in made if each["subject"] == f"of-{name}")
        assert entry["actor"] == f"identity:{name}"
