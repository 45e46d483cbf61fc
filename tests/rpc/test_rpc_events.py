"""Streams of what happens: nothing is missed, nothing is buffered, nobody may open too many.

And the alarm of N62: a caller that reaches for what its roles do not allow is in the audit log.
"""

import asyncio
import json
from contextlib import ExitStack

import grpc
import pytest
from support.authority import Authority, call, named, served

from trustauthority.errors import RateLimited
from trustauthority.model.catalogue import Role
from trustauthority.rpc import interceptor
from trustauthority.rpc.watch import MAX_STREAMS
from trustauthority.services import follow
from trustauthority.v1 import admin_pb2 as admin
from trustauthority.v1 import keyprovider_pb2 as keys
from trustauthority.v1 import placement_pb2 as pb
from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

Code = grpc.StatusCode
LIMIT_S = 10


@pytest.fixture
async def authority(tmp_path):
    async with served(tmp_path) as running:
        running.process.follower.interval_s = 0.02
        running.process.follower.idle_s = 0.2
        admin_channel = running.channel(running.admin)
        rpc = named("CreateCluster")
        assert (await call(admin_channel, rpc, rpc.request(name="lab"))).code is Code.OK
        yield running
        assert running.journal.crashes == []


async def do(authority: Authority, name: str, **values):
    rpc = named(name)
    return (await call(authority.channel(authority.admin), rpc, rpc.request(**values))).reply


async def protect(authority: Authority, vm: str) -> None:
    await do(authority, "ProtectVm", vm_id=vm, cluster="lab")


def watch(authority: Authority, credentials=None, **values):
    stub = PlacementServiceStub(authority.channel(credentials or authority.admin))
    return stub.WatchPlacement(pb.WatchPlacementRequest(**values), timeout=LIMIT_S)


async def until(stream, *operations: str) -> list[pb.WatchPlacementResponse]:
    """Events until the last of some operations was told, without signs of life."""
    told: list[pb.WatchPlacementResponse] = []
    wanted = list(operations)
    async for event in stream:
        if event.operation:
            told.append(event)
        if wanted and event.operation == wanted[0]:
            wanted.pop(0)
        if not wanted:
            return told
    raise AssertionError(f"the stream ended before {wanted}")


async def log(authority: Authority, operation: str) -> list[dict]:
    async with authority.store.snapshot() as tx:
        entries = await tx.audit.entries(start=0, limit=1_000)
    found = [json.loads(entry.content) for entry in entries]
    return [entry for entry in found if entry["operation"] == operation]


# --- events ----------------------------------------------------------------------------------


async def test_tells_what_happens_with_the_record(authority):
    """A controller hears of a VM, a host and an intent, each with the record as it is now."""
    await authority.host("h-1")
    stream = watch(authority)
    first = await anext(aiter(stream))
    assert first.cursor
    assert not first.operation
    await protect(authority, "vm-1")
    await do(authority, "DrainHost", host="h-1", why="board")
    await do(authority, "CreateIntent", vm_id="vm-1", host="h-1")
    told = await until(stream, "vm.protect", "host.drain", "placement.intent")
    kinds = [event.kind for event in told]
    assert kinds == [
        pb.PLACEMENT_EVENT_KIND_VM,
        pb.PLACEMENT_EVENT_KIND_HOST,
        pb.PLACEMENT_EVENT_KIND_INTENT,
    ]
    assert told[0].vm.vm_id == "vm-1"
    assert told[1].host.draining
    assert told[2].vm.vm_id == "vm-1"
    assert {event.actor for event in told} == {"identity:admin"}


async def test_nothing_is_missed_between_two_streams(authority):
    """A cursor goes on exactly after its event, whatever happened while nobody listened."""
    stream = watch(authority)
    await anext(aiter(stream))
    await protect(authority, "vm-0")
    cursor = (await until(stream, "vm.protect"))[-1].cursor
    stream.cancel()
    for number in range(1, 8):
        await protect(authority, f"vm-{number}")
    again = watch(authority, cursor=cursor)
    told: list[str] = []
    async for event in again:
        told += [event.subject] if event.operation else []
        if len(told) == 7:
            break
    assert told == [f"vm-{number}" for number in range(1, 8)]


async def test_only_some_vms(authority):
    """Who watches one VM hears nothing of others, but still gets cursors."""
    stream = watch(authority, vm_ids=["vm-2"])
    await anext(aiter(stream))
    await protect(authority, "vm-1")
    await protect(authority, "vm-2")
    told = await until(stream, "vm.protect")
    assert [event.subject for event in told] == ["vm-2"]


async def test_signs_of_life_when_nothing_happens(authority):
    """A silent stream tells its cursor now and then, so that a dead one is noticed."""
    stream = watch(authority)
    replies = [await anext(aiter(stream)) for _ in range(3)]
    assert all(reply.cursor and not reply.operation for reply in replies)


@pytest.mark.parametrize(
    ("cursor", "code"),
    [
        ("e0-999999", Code.ABORTED),
        ("e7-0", Code.ABORTED),
        ("0", Code.INVALID_ARGUMENT),
        ("e0--1", Code.INVALID_ARGUMENT),
        ("e0-1\n", Code.INVALID_ARGUMENT),
        ("e0-" + "1" * 40, Code.INVALID_ARGUMENT),
    ],
)
async def test_a_cursor_of_nowhere(authority, cursor, code):
    """Beyond the end or of another era: list anew. Anything else is no cursor (N44, N64)."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(aiter(watch(authority, cursor=cursor)))
    assert refused.value.code() is code


async def test_so_many_streams_and_no_more(authority, monkeypatch):
    """One caller can't hold all the streams; one that hangs up makes room (N41)."""
    monkeypatch.setattr(follow, "MAX_PER_CALLER", 2)
    streams = [watch(authority) for _ in range(2)]
    for stream in streams:  # the second reply comes from the follower: it counts by then
        await anext(aiter(stream))
        await anext(aiter(stream))
    third = aiter(watch(authority))
    await anext(third)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(third)
    assert refused.value.code() is Code.RESOURCE_EXHAUSTED
    streams[0].cancel()
    for _ in range(int(LIMIT_S / 0.02)):
        if sum(authority.process.follower._callers.values()) <= 2:
            break
        await asyncio.sleep(0.02)
    other = watch(authority, await authority.identity("scheduler", Role.PLACEMENT))
    await anext(aiter(other))


async def test_who_falls_behind_for_good_is_ended(authority, monkeypatch):
    """Nothing is buffered for a slow reader: it is told, and goes on from its cursor."""
    monkeypatch.setattr(follow, "MAX_BEHIND", 5)
    monkeypatch.setattr(follow, "BATCH", 1)
    follower = authority.process.follower
    reading = follower.follow(await follower.size(), caller="slow")
    assert await anext(reading) == ()  # it has seen everything
    for number in range(10):
        await protect(authority, f"vm-{number}")
    await asyncio.sleep(0.02)  # the size is asked of the store once per interval
    with pytest.raises(RateLimited, match="slower"):
        await anext(reading)
    assert follower._callers.get("slow") is None


async def test_streams_end_with_the_process(authority):
    """A process that stops does not wait for its watchers."""
    stream = watch(authority)
    await anext(aiter(stream))
    authority.process.stopping.set()
    async with asyncio.timeout(LIMIT_S):
        async for _ in stream:
            pass


# --- VMs -------------------------------------------------------------------------------------


async def test_vms_as_they_are_then_as_they_change(authority):
    """ta vm list --watch: everything once, then each VM again as it changes."""
    await protect(authority, "vm-1")
    rpc = named("WatchVms")
    channel = authority.channel(authority.admin)
    stream = channel.unary_stream(
        rpc.path,
        request_serializer=lambda each: each.SerializeToString(),
        response_deserializer=rpc.reply.FromString,
    )(keys.WatchVmsRequest(), timeout=LIMIT_S)
    first = await anext(aiter(stream))
    assert ([vm.vm_id for vm in first.vms], first.complete) == (["vm-1"], True)
    await protect(authority, "vm-2")
    await do(authority, "ReprofileVm", vm_id="vm-1", profile_digest=b"n" * 32)
    seen: dict[str, bytes] = {}
    async for reply in stream:
        seen |= {vm.vm_id: vm.profile_digest for vm in reply.vms}
        if seen.get("vm-1") == b"n" * 32 and "vm-2" in seen:
            break


async def test_an_unknown_vm_is_not_watched(authority):
    """NOT_FOUND instead of a silence that never ends."""
    answer = await call(
        authority.channel(authority.admin), named("WatchVms"), keys.WatchVmsRequest(vm_ids=["none"])
    )
    assert answer.code is Code.NOT_FOUND


@pytest.mark.parametrize("method", ["WatchPlacement", "WatchVms", "TailAudit"])
async def test_a_revoked_identity_hears_nothing_more(authority, monkeypatch, method):
    """N02: revoked means no further entry on a stream that was open before, either."""
    monkeypatch.setattr(interceptor, "RECHECK_S", 0.0)
    person = await authority.identity("person", *Role)
    rpc = named(method)
    stream = authority.channel(person).unary_stream(
        rpc.path, rpc.request.SerializeToString, rpc.reply.FromString
    )(rpc.request(), timeout=LIMIT_S)
    await protect(authority, "vm-1")
    told = aiter(stream)
    await anext(told)
    revoke = named("RevokeIdentity")
    answer = await call(authority.channel(authority.admin), revoke, revoke.request(name="person"))
    assert answer.code is Code.OK
    await protect(authority, "vm-2")
    heard: list[str] = []

    async def listen() -> None:
        async for entry in told:
            heard.append(str(entry))

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await listen()
    assert "vm-2" not in "".join(heard)
    assert ended.value.code() is Code.UNAUTHENTICATED


# --- hints -----------------------------------------------------------------------------------


async def test_an_order_is_told_to_its_source(authority):
    """The follower of the process pushes the wish, whichever process wrote the order."""
    with authority.process.watchers.subscribe("h-1") as queue:
        async with authority.store.transaction() as tx:
            from trustauthority.model.audit import AuditEvent

            await tx.audit.append(
                AuditEvent(
                    actor="identity:other-process",
                    operation="order.place",
                    subject="vm-1",
                    decision="done",
                    details={"source": "h-1", "destination": "h-2", "order": "o"},
                )
            )
        pushed = await asyncio.wait_for(queue.get(), LIMIT_S)
    assert pushed.wish == 3


async def test_a_host_listens_on_a_few_streams_and_no_more(authority):
    """T4: what one host keeps open takes a bounded place, and another host finds room."""
    watchers = authority.process.watchers
    with ExitStack() as open_streams:
        for _ in range(MAX_STREAMS):
            open_streams.enter_context(watchers.subscribe("h-1"))
        with pytest.raises(RateLimited), watchers.subscribe("h-1"):
            pass
        with watchers.subscribe("h-2"):
            pass
    with watchers.subscribe("h-1"):
        pass


# --- N62 -------------------------------------------------------------------------------------


async def test_a_scheduler_that_reaches_for_keys_is_reported(authority):
    """N62: a placement caller on admin and key calls is denied, and the audit log says so."""
    scheduler = authority.channel(await authority.identity("scheduler", Role.PLACEMENT))
    for name in ("CreateKey", "ApplyPolicy", "RevokeHost"):
        for _ in range(3):
            assert (await call(scheduler, named(name))).code is Code.PERMISSION_DENIED
    told = await log(authority, "access.refused")
    assert [entry["actor"] for entry in told] == ["identity:scheduler"] * 3
    assert {entry["details"]["call"].rpartition("/")[2] for entry in told} == {
        "CreateKey",
        "ApplyPolicy",
        "RevokeHost",
    }


async def test_an_allowed_call_is_no_alarm(authority):
    """The alarm means something: nothing of what a caller may do is in it."""
    scheduler = authority.channel(await authority.identity("scheduler", Role.PLACEMENT))
    answer = await call(scheduler, named("ListVms"), keys.ListVmsRequest())
    assert answer.code is Code.OK
    await call(scheduler, named("ListHosts"), admin.ListHostsRequest())
    assert not await log(authority, "access.refused")


BEHALF = "ta-on-behalf-of"


async def test_an_order_for_another_names_both(authority):
    """N62: who asked through a gateway is in the audit log, beside the identity that vouches for it."""
    await protect(authority, "vm-1")
    await authority.host("h-1")
    gateway = authority.channel(await authority.identity("gateway", Role.PLACEMENT))
    request = pb.CreateIntentRequest(vm_id="vm-1", host="h-1")
    made = await call(gateway, named("CreateIntent"), request, metadata=[(BEHALF, "nova")])
    assert made.code is Code.OK
    assert [each["actor"] for each in await log(authority, "placement.intent")] == [
        "identity:gateway/nova"
    ]


@pytest.mark.parametrize("said", ["", "a/b", "identity:root", "Nova", "x" * 64, "a b"])
async def test_a_name_that_is_none_is_refused(authority, said):
    """N44: nothing but one name gets into the audit log's actor, or it could say anything."""
    gateway = authority.channel(await authority.identity("gateway", Role.PLACEMENT))
    request = pb.CreateIntentRequest(vm_id="vm-1", host="h-1")
    refused = await call(gateway, named("CreateIntent"), request, metadata=[(BEHALF, said)])
    assert refused.code is Code.INVALID_ARGUMENT
    assert not await log(authority, "placement.intent")


async def test_another_name_gives_no_right(authority):
    """N62: rights follow the certificate; whose name rides along changes nothing."""
    gateway = authority.channel(await authority.identity("gateway", Role.PLACEMENT))
    for name in ("CreateKey", "ApplyPolicy", "RevokeHost"):
        answer = await call(gateway, named(name), metadata=[(BEHALF, "admin")])
        assert answer.code is Code.PERMISSION_DENIED
    assert {each["actor"] for each in await log(authority, "access.refused")} == {
        "identity:gateway"
    }


async def test_a_host_asks_for_itself(authority):
    """N44: a host speaks for nobody; a name with its call is a mistake or a trick."""
    host = authority.channel(await authority.host("h-2"))
    assert (await call(host, named("ListOwnMoveOrders"))).code is Code.OK
    refused = await call(host, named("ListOwnMoveOrders"), metadata=[(BEHALF, "nova")])
    assert refused.code is Code.INVALID_ARGUMENT
