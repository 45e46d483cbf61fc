"""Too much at once, and too slowly: limits, idle and half-open connections, TLS versions (N40, N41, N43, N70)."""

import asyncio
import socket
import ssl
import time

import grpc
import pytest
from support.authority import Authority, call, generous_limits, named, served

from trustauthority.adapters.keyfiles import SERVER_CA
from trustauthority.errors import RateLimited
from trustauthority.rpc.limits import PeerLimits

Code = grpc.StatusCode


CHALLENGE, STATUS = named("GetEnrolmentChallenge"), named("GetStatus")


@pytest.fixture
async def authority(tmp_path):
    """With the limits of production."""
    async with served(tmp_path, limits=PeerLimits()) as running:
        yield running


# --- limits ----------------------------------------------------------------------------------


async def test_a_flood_of_challenges_is_limited_and_writes_nothing(authority):
    """N43: from one address, RESOURCE_EXHAUSTED with RetryInfo beyond the limit; DB rows +0."""
    channel = authority.channel(None, "enrol")
    request = CHALLENGE.request(cluster="lab", ek_public=b"k" * 300)
    before = await authority.dump()
    began = time.monotonic()
    answers = [
        answer
        for _ in range(3)
        for answer in await asyncio.gather(*(call(channel, CHALLENGE, request) for _ in range(100)))
    ]
    seconds = time.monotonic() - began
    good = [answer for answer in answers if answer.code is Code.OK]
    assert 20 <= len(good) <= 20 * (int(seconds) + 2)
    for answer in answers:
        if answer.code is not Code.OK:
            assert (answer.code, answer.reason) == (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED")
            assert [each.retry_delay.ToMilliseconds() for each in answer.retries] == [1000]
            assert answer.trailing["ta-checkpoint-bin"]
    assert await authority.dump() == before
    # people and hosts on the other listener are counted apart
    assert (await call(authority.channel(authority.admin), STATUS)).code is Code.OK


async def test_limits_count_addresses_not_connections(authority):
    """N43: a new connection, and a call of another kind of enrolment, do not begin anew."""
    request = CHALLENGE.request(cluster="lab", ek_public=b"k" * 300)
    answers = []
    for number in range(40):
        rpc = (CHALLENGE, named("Activate"))[number % 2]
        sent = request if rpc is CHALLENGE else rpc.request(pending_id="a" * 32, proof=b"p" * 32)
        answers.append(await call(authority.channel(None, "enrol"), rpc, sent))
    limited = [each for each in answers if each.code is Code.RESOURCE_EXHAUSTED]
    assert len(limited) > 5


def test_each_address_has_its_own_limit():
    """N43: one address that floods does not close the door for the others."""
    limits = PeerLimits(enrolment_per_second=3, calls_per_second=5)
    for _ in range(3):
        limits.check("10.0.0.1", CHALLENGE.path)
    with pytest.raises(RateLimited):
        limits.check("10.0.0.1", CHALLENGE.path)
    for number in range(2, 50):
        limits.check(f"10.0.0.{number}", CHALLENGE.path)
    for _ in range(5):
        limits.check("10.0.0.1", STATUS.path)
    with pytest.raises(RateLimited) as caught:
        limits.check("10.0.0.1", STATUS.path)
    assert caught.value.metadata["retryAfterMs"] == "1000"


# --- connections -----------------------------------------------------------------------------


def _client_hello() -> bytes:
    """The first flight of a TLS client that then falls silent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def _closed_within(reader: asyncio.StreamReader, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            while await reader.read(65_536):
                pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


async def test_idle_and_half_open_connections_are_reaped(authority):
    """N40: 200 that say nothing or stop in the middle of TLS are closed in 5 s; others are served."""
    address = authority.process.addresses["mutual"]
    host, _, port = address.rpartition(":")
    hello = _client_hello()
    pairs = [await asyncio.open_connection(host, int(port)) for _ in range(200)]
    for number, (_, writer) in enumerate(pairs):
        if number % 4:
            writer.write((b"", hello, hello[:40], b"\x16\x03\x01")[number % 4])
    began = time.monotonic()
    waiting = asyncio.gather(*(_closed_within(reader, 5) for reader, _ in pairs))
    served_in = []
    for _ in range(5):
        asked = time.monotonic()
        channel = authority.channel(authority.admin)
        assert (await call(channel, STATUS)).code is Code.OK
        served_in.append(time.monotonic() - asked)
        await channel.close()
    assert max(served_in) < 2
    assert await waiting == [True] * 200
    assert time.monotonic() - began < 5.5
    for _, writer in pairs:
        writer.close()


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0" * 4096,
        b"\x16\x03\x01\xff\xff",
    ],
    ids=["http", "plain http2", "zeros", "tls record without end"],
)
async def test_what_is_not_tls_is_hung_up_on(authority, noise):
    """N40: no plaintext answer, no handler."""
    host, _, port = authority.process.addresses["mutual"].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(noise)
    assert await _closed_within(reader, 5)
    writer.close()
    assert authority.journal.of("rpc") == []


async def test_many_calls_on_one_connection(tmp_path):
    """N41: up to the limit of streams all are answered; beyond it some are refused, unserved, to retry."""
    async with served(tmp_path, limits=generous_limits()) as authority:
        channel = authority.channel(authority.admin)
        answers = await asyncio.gather(*(call(channel, STATUS) for _ in range(100)))
        assert {answer.code for answer in answers} == {Code.OK}
        answers = await asyncio.gather(*(call(channel, STATUS) for _ in range(200)))
        good = sum(answer.code is Code.OK for answer in answers)
        assert {answer.code for answer in answers} <= {Code.OK, Code.UNAVAILABLE}
        assert good >= 128
        lines = [line["code"] for line in authority.journal.of("rpc")]
        assert lines == ["OK"] * (100 + good)
        assert (await call(channel, STATUS)).code is Code.OK


async def test_rapid_reset_does_not_hurt_others(tmp_path):
    """N41: a thousand calls that are cancelled as soon as they are sent; another client is served."""
    async with served(tmp_path, limits=generous_limits()) as authority:
        flood, other = authority.channel(authority.admin), authority.channel(authority.admin)
        stub = flood.unary_unary(STATUS.path)
        for _ in range(10):
            going = [stub(b"", timeout=5) for _ in range(100)]
            await asyncio.sleep(0)
            for each in going:
                each.cancel()
            began = time.monotonic()
            assert (await call(other, STATUS)).code is Code.OK
            assert time.monotonic() - began < 2
        assert authority.journal.crashes == []
        assert await _quiet(authority)


async def test_hanging_up_at_any_moment_locks_nothing(tmp_path):
    """N38, N40: a call that is cut off in the middle of a statement leaves no lock and no task behind."""
    async with served(tmp_path, limits=generous_limits()) as authority:
        channel, create = authority.channel(authority.admin), named("CreateCluster")
        for number in range(150):
            rpc = (STATUS, create)[number % 2]
            request = create.request(name=f"c-{number}") if rpc is create else rpc.request()
            await call(channel, rpc, request, timeout_s=0.0002 * (number % 50))
        assert await _quiet(authority)
        assert (await call(channel, create, create.request(name="last"))).code is Code.OK
        closing = [task for task in asyncio.all_tasks() if "graceful_close" in str(task.get_coro())]
        assert closing == []
        assert authority.journal.crashes == []


async def _quiet(authority: Authority) -> bool:
    """The write lock is free and reads work: no cancelled call left anything locked."""
    async with asyncio.timeout(5), authority.store.transaction():
        pass
    return (await call(authority.channel(authority.admin), STATUS)).code is Code.OK


# --- TLS -------------------------------------------------------------------------------------


def _handshake(authority: Authority, listener: str, **limits) -> str:
    """The version that a handshake ends with; raises when there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.files.path(SERVER_CA, "crt"))
    context.load_cert_chain(
        authority.folder / "identity" / "admin.crt", authority.folder / "identity" / "admin.key"
    )
    context.set_alpn_protocols(["h2"])
    for name, value in limits.items():
        setattr(context, name, value)
    host, _, port = authority.process.addresses[listener].rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return str(secure.version())


async def test_the_version_is_tls_1_3(authority):
    """N70: what a modern client gets."""
    for listener in ("mutual", "enrol"):
        assert await asyncio.to_thread(_handshake, authority, listener) == "TLSv1.3"


async def test_a_client_that_trusts_another_ca_does_not_talk_to_us(authority):
    """N02: the server shows a certificate of the authority CA and no other."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=authority.files.path("host-ca", "crt").read_bytes()
    )
    channel = grpc.aio.secure_channel(authority.process.addresses["enrol"], credentials)
    answer = await call(channel, CHALLENGE)
    await channel.close()
    assert answer.code is Code.UNAVAILABLE
    assert authority.journal.of("rpc") == []
