"""The HTTP gateway: who may ask, what it answers, what it refuses; and never a key."""

import ast
import asyncio
import json
import os
import re
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
from support.authority import Authority, call, named, served
from support.gateway import RunningGateway, gateway_served, private, settings_of

from trustauthority.errors import ConfigurationInvalid, InsecureFile
from trustauthority.gateway import app, bodies, serve
from trustauthority.gateway.authority import Upstream
from trustauthority.gateway.callers import load_callers, new_token
from trustauthority.gateway.openapi import DESCRIPTION, PATHS
from trustauthority.gateway.settings import GatewaySettings, LimitSettings, load
from trustauthority.model.catalogue import Role

PROJECT = Path(__file__).parents[2]
OPEN = {"/healthz", "/openapi.json"}
HOSTILE = ["a\nb", "\x1b[2J", "../../etc/passwd", "a\0b", "é", "а", "%s%n", "a b", "A", "-a"]


@pytest.fixture
async def authority(tmp_path):
    async with served(tmp_path) as running:
        running.process.follower.interval_s = 0.02
        running.process.follower.idle_s = 0.2
        for name, values in (
            ("CreateCluster", {"name": "lab"}),
            ("ProtectVm", {"vm_id": "vm-1", "cluster": "lab"}),
        ):
            await do(running, name, **values)
        await running.host("h-1")
        yield running


async def do(authority: Authority, rpc_name: str, **values):
    rpc = named(rpc_name)
    return (await call(authority.channel(authority.admin), rpc, rpc.request(**values))).reply


@pytest.fixture
async def gateway(authority, tmp_path):
    identity = await authority.identity("gateway", Role.PLACEMENT)
    async with gateway_served(authority, identity, tmp_path / "gateway") as running:
        yield running


def check(response: httpx.Response, status: int, reason: str) -> dict:
    """A problem document of RFC 9457, with the reason."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert (content["status"], content["reason"]) == (status, reason), content
    assert content["type"] == f"urn:trustauthority:error:{reason}"
    return content


def operations() -> list[tuple[str, str]]:
    return [(method.upper(), path) for path, found in PATHS.items() for method in found]


# --- who asks --------------------------------------------------------------------------------


UNKNOWN = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Basic d2hvOndobw=="},
    {"Authorization": "Bearer " + "x" * 500},
    {"X-Client-Cert": "-----BEGIN CERTIFICATE-----", "X-Forwarded-User": "nova"},
]


async def test_nobody_unknown_is_answered(gateway: RunningGateway) -> None:
    """N02: each operation but health and description needs a known caller; headers are no identity."""
    client = gateway.client(None)
    for headers in UNKNOWN:
        for method, path in operations():
            response = await client.request(method, path, headers=headers)
            if path in OPEN:
                assert response.status_code == 200
            else:
                check(response, 401, "UNAUTHENTICATED")
                assert response.headers["www-authenticate"] == "Bearer"


async def test_the_hash_of_a_token_is_no_token(gateway: RunningGateway) -> None:
    """Who reads the file of callers can't call with what stands there."""
    content = (gateway.folder / "callers.toml").read_text()
    digest = re.findall(r'"([0-9a-f]{64})"', content)[0]
    check(await gateway.client(digest).get("/v1/vms"), 401, "UNAUTHENTICATED")
    assert gateway.token not in content


async def test_two_identities_at_once_are_none(gateway: RunningGateway) -> None:
    """A second Authorization header is not ignored: it could be somebody else's."""
    client = gateway.client(None)
    headers = [("Authorization", f"Bearer {t}") for t in (gateway.token, gateway.other_token)]
    check(await client.get("/v1/vms", headers=headers), 401, "UNAUTHENTICATED")


async def test_the_gateway_can_do_what_its_identity_may(authority, tmp_path) -> None:
    """N62: with another role the authority refuses, and the gateway passes it on."""
    auditor = await authority.identity("gateway", Role.AUDITOR)
    async with gateway_served(authority, auditor, tmp_path / "gateway") as gateway:
        client = gateway.client()
        assert (await client.get("/v1/vms")).status_code == 200
        body = {"vm": "vm-1", "host": "h-1"}
        check(await client.post("/v1/intents", json=body), 403, "ROLE_REQUIRED")


async def test_systemd_hears_how_it_is(authority, tmp_path) -> None:
    """N72: the process says when it serves, that its loop turns, and that it ends; exit status 0."""
    identity = await authority.identity("gateway", Role.PLACEMENT)
    settings, _, _ = settings_of(authority, identity, tmp_path / "gateway")
    client = settings.authority
    config = private(
        tmp_path / "gateway.toml",
        f'callers = "{settings.callers}"\nstate_dir = "{settings.state_dir}"\n[authority]\n'
        f'server = "{client.server}"\nca = "{client.ca}"\n'
        f'certificate = "{client.certificate}"\nkey = "{client.key}"\n[listen]\nport = 0\n',
    )
    program = Path(sys.executable).parent / "trustauthority"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        process = await asyncio.create_subprocess_exec(
            *(program, "gateway", "serve", "--config", config),
            stdout=asyncio.subprocess.DEVNULL,
            stdin=asyncio.subprocess.DEVNULL,
            env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        try:
            told = [await asyncio.to_thread(systemd.recv, 100) for _ in range(2)]
            assert told == [b"READY=1", b"WATCHDOG=1"]
            process.terminate()
            while told[-1] == b"WATCHDOG=1":
                told.append(await asyncio.to_thread(systemd.recv, 100))
            assert told[-1] == b"STOPPING=1"
            async with asyncio.timeout(20):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_a_gateway_that_is_not_known_says_so(authority, tmp_path) -> None:
    """Its own certificate is not the caller's fault: 502, not 401."""
    stranger = await authority.identity("gateway", registered=False)
    async with gateway_served(authority, stranger, tmp_path / "gateway") as gateway:
        check(await gateway.client().get("/v1/vms"), 502, "GATEWAY_NOT_ACCEPTED")


async def test_each_caller_has_its_own_rate(authority, tmp_path) -> None:
    """One that asks too much is told when to come again; others are not touched (N43)."""
    identity = await authority.identity("gateway", Role.PLACEMENT)
    limits = {"calls_per_second": 3}
    async with gateway_served(authority, identity, tmp_path / "gateway", limits=limits) as gateway:
        client, other = gateway.client(), gateway.client(gateway.other_token)
        answers = [await client.get("/v1/vms/vm-1") for _ in range(12)]
        refused = [each for each in answers if each.status_code == 429]
        assert refused
        check(refused[0], 429, "RATE_LIMITED")
        assert int(refused[0].headers["retry-after"]) >= 1
        assert (await other.get("/v1/vms/vm-1")).status_code == 200


# --- TLS -------------------------------------------------------------------------------------


def write(folder: Path, name: str, credentials) -> tuple[Path, Path]:
    return (
        private(folder / f"{name}.crt", credentials.chain),
        private(folder / f"{name}.key", credentials.key),
    )


@pytest.fixture
async def mutual(authority, tmp_path):
    """A gateway with TLS that knows one client certificate, and how to connect to it."""
    import hashlib

    from support.authority import issue, self_signed, spki_sha256

    from trustauthority.adapters.clock import SystemClock
    from trustauthority.adapters.keyfiles import ADMIN_CA, SERVER_CA

    folder = tmp_path / "gateway"
    folder.mkdir(mode=0o700)
    known = issue(authority.authority(ADMIN_CA), "/caller/nova", now_ms=SystemClock().now_ms())
    unknown = issue(authority.authority(ADMIN_CA), "/caller/x", now_ms=SystemClock().now_ms())
    files = authority.files
    tls = {
        "certificate": str(files.path("server-attest", "crt")),
        "key": str(files.path("server-attest")),
        "client_ca": str(files.path(ADMIN_CA, "crt")),
    }
    more = f'[[caller]]\nname = "tls"\ncertificate_key_sha256 = "{spki_sha256(known)}"\n'
    identity = await authority.identity("gateway", Role.PLACEMENT)

    def connect(credentials=None, **options) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(files.path(SERVER_CA, "crt")))
        if credentials is not None:
            name = hashlib.sha256(credentials.chain).hexdigest()[:8]
            context.load_cert_chain(*write(folder, name, credentials))
        for option, value in options.items():
            setattr(context, option, value)
        return context

    async with gateway_served(
        authority,
        identity,
        folder,
        listen={"address": "127.0.0.1", "port": 0, "tls": tls},
        more_callers=more,
    ) as gateway:
        yield gateway, connect, {"known": known, "unknown": unknown, "self": self_signed()}


async def test_a_known_certificate_is_a_caller(mutual) -> None:
    """A client certificate counts by its key, as TLS proved it."""
    gateway, connect, who = mutual
    client = gateway.client(None, tls=connect(who["known"]))
    assert (await client.get("/v1/vms")).status_code == 200


async def test_other_certificates_are_not(mutual) -> None:
    """N02: another key of our CA is unknown, a self-signed one does not get through the handshake."""
    gateway, connect, who = mutual
    unknown = gateway.client(None, tls=connect(who["unknown"]))
    check(await unknown.get("/v1/vms"), 401, "UNAUTHENTICATED")
    nobody = gateway.client(None, tls=connect())
    check(await nobody.get("/v1/vms"), 401, "UNAUTHENTICATED")
    with pytest.raises(httpx.TransportError):
        await gateway.client(None, tls=connect(who["self"])).get("/v1/vms")


async def test_a_token_needs_no_certificate(mutual) -> None:
    """Both ways on one listener; a wrong token is not saved by a good certificate."""
    gateway, connect, who = mutual
    assert (await gateway.client(tls=connect()).get("/v1/vms")).status_code == 200
    wrong = gateway.client("wrong", tls=connect(who["known"]))
    check(await wrong.get("/v1/vms"), 401, "UNAUTHENTICATED")


async def test_tls_1_2_is_refused(mutual) -> None:
    """N70: 1.3 or nothing."""
    gateway, connect, who = mutual
    old = connect(who["known"], maximum_version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises(httpx.TransportError):
        await gateway.client(None, tls=old).get("/v1/vms")


# --- answers ---------------------------------------------------------------------------------


async def test_one_and_a_thousand_questions(gateway: RunningGateway) -> None:
    """Answers in the order of the questions, each with reasons and rules; one more is refused."""
    client = gateway.client()
    one = {"candidates": [{"vm": "vm-1", "host": "h-1"}]}
    (answer,) = (await client.post("/v1/placement/check", json=one)).json()["answers"]
    assert answer["allowed"] is False
    assert {"reason", "detail", "rule"} == set(answer["unmet"][0])
    hosts = [f"h-{number}" for number in range(1_000)]
    many = {"candidates": [{"vm": "vm-1", "host": host} for host in hosts]}
    answers = (await client.post("/v1/placement/check", json=many)).json()["answers"]
    assert [each["host"] for each in answers] == hosts
    many["candidates"].append({"vm": "vm-1", "host": "h-x"})
    check(await client.post("/v1/placement/check", json=many), 400, "INVALID_REQUEST")


async def test_vms_candidates_intents_and_orders(gateway: RunningGateway, authority) -> None:
    """What a scheduler needs, in the JSON of ta; what does not exist is 404."""
    client = gateway.client()
    assert [vm["vmId"] for vm in (await client.get("/v1/vms")).json()["vms"]] == ["vm-1"]
    assert (await client.get("/v1/vms/vm-1")).json()["cluster"] == "lab"
    check(await client.get("/v1/vms/none"), 404, "NOT_FOUND")
    ranked = (await client.get("/v1/vms/vm-1/candidates")).json()["candidates"]
    assert [each["hostId"] for each in ranked] == ["h-1"]
    made = await client.post("/v1/intents", json={"vm": "vm-1", "host": "h-1", "ttlMs": 60_000})
    assert made.status_code == 201
    listed = (await client.get("/v1/intents", params={"vm": "vm-1"})).json()["intents"]
    assert [each["intentId"] for each in listed] == [made.json()["intentId"]]
    assert listed[0]["createdBy"] == "identity:gateway/nova"
    order = {"vm": "vm-1", "destination": "h-1"}
    check(await client.post("/v1/orders", json=order), 409, "FAILED_PRECONDITION")
    assert (await client.get("/v1/orders")).json() == {"orders": []}
    made_up = "order-0000000001"
    check(await client.get(f"/v1/orders/{made_up}"), 404, "NOT_FOUND")
    check(await client.delete(f"/v1/orders/{made_up}"), 404, "NOT_FOUND")


async def test_an_authority_that_is_away(authority, tmp_path) -> None:
    """No answer is 503 with a time to come again, not a yes and not a hang."""
    identity = await authority.identity("gateway", Role.PLACEMENT)
    settings, *_ = settings_of(authority, identity, tmp_path / "gateway")
    nowhere = settings.authority.model_dump(mode="json") | {
        "server": "127.0.0.1:1",
        "timeout_s": 0.5,
    }
    async with gateway_served(
        authority, identity, tmp_path / "gateway", authority=nowhere
    ) as gateway:
        response = await gateway.client().get("/v1/vms")
        assert response.status_code in {503, 504}
        check(response, response.status_code, response.json()["reason"])
        assert (await gateway.client(None).get("/healthz")).status_code == 200


async def test_a_bug_says_nothing_but_an_id(gateway: RunningGateway, monkeypatch) -> None:
    """S12, N04: an exception is a 500 with an id; its text stays in the log."""

    async def crash(*_args, **_options):
        raise RuntimeError("the secret of the day")

    monkeypatch.setattr(Upstream, "vms", crash)
    response = await gateway.client().get("/v1/vms")
    check(response, 500, "INTERNAL")
    assert "secret" not in response.text
    assert re.search(r"internal error [0-9a-f]{16}", response.json()["detail"])


# --- hostile input ---------------------------------------------------------------------------


NO_BODIES = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b'{"candidates": []}',
    b'{"candidates": [{}]}',
    b'{"candidates": [{"vm": "vm-1"}]}',
    b'{"candidates": [{"vm": 5, "host": "h-1"}]}',
    b'{"candidates": [{"vm": null, "host": "h-1"}]}',
    b'{"candidates": [{"vm": "", "host": "h-1"}]}',
    b'{"candidates": [{"vm": "vm-1", "host": "h-1", "extra": 1}]}',
    b'{"candidates": [{"vm": "vm-1", "host": "h-1"}], "extra": NaN}',
    b'{"candidates": [{"vm": "vm-1", "vm": "vm-2", "host": "h-1"}]}',
    b'{"candidates": {"vm": "vm-1", "host": "h-1"}}',
    b'{"candidates": "vm-1"}',
    b'{"candidates": [{"vm": "vm-1", "host": "h-1"}]',
    b"\xff\xfe{\x00",
    b'{"candidates":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    b'{"candidates": [{"vm": "' + b"x" * 64 + b'", "host": "h-1"}]}',
]


async def test_bodies_that_are_none(gateway: RunningGateway) -> None:
    """N44: anything but the expected object is refused with a reason, before anybody is asked."""
    client, kind = gateway.client(), {"Content-Type": "application/json"}
    for content in NO_BODIES:
        response = await client.post("/v1/placement/check", content=content, headers=kind)
        check(response, 400, "INVALID_REQUEST")


async def test_names_that_are_none(gateway: RunningGateway) -> None:
    """N44: newlines, escapes, paths, look-alikes: the authority's grammar decides, nothing is written."""
    client = gateway.client()
    for name in HOSTILE:
        for body in ({"vm": name, "host": "h-1"}, {"vm": "vm-1", "host": name}):
            check(await client.post("/v1/intents", json=body), 400, "INVALID_REQUEST")
        order = {"vm": name, "destination": "h-1"}
        check(await client.post("/v1/orders", json=order), 400, "INVALID_REQUEST")
        check(await client.get("/v1/vms", params={"host": name}), 400, "INVALID_REQUEST")
    assert (await client.get("/v1/intents")).json() == {"intents": []}


async def test_paths_that_are_none(gateway: RunningGateway) -> None:
    """N44: what a path decodes to is a name or it is refused."""
    client = gateway.client()
    for path in ("/v1/vms/..%2f..%2fetc", "/v1/vms/%00", "/v1/orders/%0a", "/v1/vms/%ff"):
        response = await client.get(path)
        assert response.status_code in {400, 404}
        assert response.headers["content-type"] == "application/problem+json"


async def test_numbers_beyond_their_range(gateway: RunningGateway) -> None:
    """N84: lengths and sizes are checked before they are converted."""
    client = gateway.client()
    for ttl in (-1, 86_400_001, 2**63, 2**64, 1.5, "60000", True):
        body = {"vm": "vm-1", "host": "h-1", "ttlMs": ttl}
        check(await client.post("/v1/intents", json=body), 400, "INVALID_REQUEST")
    for size in ("-1", "501", "x", "1" * 40, "٣", ""):
        response = await client.get("/v1/vms", params={"pageSize": size})
        check(response, 400, "INVALID_REQUEST")


async def test_parameters_that_are_none(gateway: RunningGateway) -> None:
    """An unknown parameter, or one told twice, is a mistake and not ignored."""
    client = gateway.client()
    for query in ("x=1", "vm=a&vm=b", "open=perhaps"):
        check(await client.get(f"/v1/orders?{query}"), 400, "INVALID_REQUEST")


async def test_too_large_and_not_json(gateway: RunningGateway) -> None:
    """N41: a body beyond the limit is refused while it comes; another type at once."""
    client = gateway.client()
    huge = b'{"candidates": [' + b" " * 300_000 + b"]}"
    kind = {"Content-Type": "application/json"}
    response = await client.post("/v1/placement/check", content=huge, headers=kind)
    check(response, 413, "INVALID_REQUEST")
    check(await client.post("/v1/placement/check", content=b"{}"), 415, "INVALID_REQUEST")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    response = await client.post("/v1/intents", content=b"vm=vm-1", headers=form)
    check(response, 415, "INVALID_REQUEST")


async def test_a_body_that_does_not_come(gateway: RunningGateway, monkeypatch) -> None:
    """N40: a slow drip ends with the body's own limit."""
    monkeypatch.setattr(bodies, "BODY_S", 0.2)

    async def drip():
        for _ in range(20):
            yield b" "
            await asyncio.sleep(0.1)

    kind = {"Content-Type": "application/json"}
    try:
        response = await gateway.client().post("/v1/intents", content=drip(), headers=kind)
    except httpx.TransportError:
        return  # the connection was closed while it dripped
    check(response, 400, "INVALID_REQUEST")


@pytest.mark.parametrize("first", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /"])
async def test_a_request_that_does_not_come(gateway: RunningGateway, monkeypatch, first) -> None:
    """T2: unknown callers can't hold the places of others; a stream that is served goes on."""
    monkeypatch.setattr(serve, "REQUEST_S", 0.2)
    address, port = gateway.url.removeprefix("http://").split(":")
    async with gateway.client().stream("GET", "/v1/events") as response, asyncio.timeout(10):
        lines = aiter(response.aiter_lines())
        await anext(lines)
        reader, writer = await asyncio.open_connection(address, int(port))
        writer.write(first)
        with suppress(ConnectionResetError):
            while await reader.read(1024):
                continue
        writer.close()
        alive = 0
        while alive < 5:  # signs of life, each 0.2 s or more after the one before
            alive += await anext(lines) == "event: alive"


async def test_what_is_not_there(gateway: RunningGateway) -> None:
    """404 and 405 are problem documents, too."""
    client = gateway.client()
    check(await client.get("/v2/vms"), 404, "NOT_FOUND")
    check(await client.put("/v1/vms"), 405, "INVALID_REQUEST")
    check(await client.delete("/v1/vms/vm-1"), 405, "INVALID_REQUEST")


# --- events ----------------------------------------------------------------------------------


async def events_of(response: httpx.Response, many: int) -> list[dict]:
    """So many server-sent events: id, event, data."""
    found: list[dict] = []
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        found.append({**fields, "data": json.loads(fields["data"])})
        fields = {}
        if len(found) == many:
            break
    return found


async def until_vm(response: httpx.Response, vm: str) -> dict:
    async with asyncio.timeout(10):
        while True:
            for event in await events_of(response, 1):
                if event["data"].get("subject") == vm:
                    return event


async def test_events_go_on_from_their_id(gateway: RunningGateway, authority) -> None:
    """Last-Event-ID: what happened while nobody listened is told next; nothing twice."""
    client = gateway.client()
    async with client.stream("GET", "/v1/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        (first,) = await events_of(response, 1)
        assert first["event"] == "alive"
    for vm in ("vm-2", "vm-3"):
        await do(authority, "ProtectVm", vm_id=vm, cluster="lab")
    headers = {"Last-Event-ID": first["id"]}
    async with client.stream("GET", "/v1/events", headers=headers) as response:
        told = [e for e in await events_of(response, 3) if e["event"] != "alive"]
    assert [each["data"]["subject"] for each in told] == ["vm-2", "vm-3"]
    assert told[0]["event"] == "vm"
    assert told[0]["data"]["vm"]["vmId"] == "vm-2"
    async with client.stream("GET", "/v1/events", params={"cursor": told[0]["id"]}) as response:
        again = [e for e in await events_of(response, 2) if e["event"] != "alive"]
    assert [each["data"]["subject"] for each in again] == ["vm-3"]


async def test_streams_are_counted(gateway: RunningGateway) -> None:
    """One caller has a few; one that hangs up makes room."""
    client = gateway.client()
    for _ in range(2):
        async with AsyncExitStack() as opened:
            reading = [await begun_stream(opened, client) for _ in range(4)]
            check(await client.get("/v1/events"), 429, "RATE_LIMITED")
            assert len(reading) == 4


async def begun_stream(opened: AsyncExitStack, client: httpx.AsyncClient) -> AsyncIterator[str]:
    """A stream whose first event was read; whoever drops the iterator hangs up.

    A caller that hung up before is noticed at the next sign of life, hence more than one try.
    """
    async with asyncio.timeout(20):
        while True:
            stream = client.stream("GET", "/v1/events")
            response = await stream.__aenter__()
            if response.status_code == 200:
                opened.push_async_exit(stream)
                lines = response.aiter_lines()
                while await anext(lines):
                    pass
                return lines
            await stream.__aexit__(None, None, None)
            await asyncio.sleep(0.1)


async def test_a_caller_that_hangs_up_at_once_makes_room(tmp_path: Path) -> None:
    """T2: hanging up before the first event leaves takes no stream away for good."""
    token, digest = new_token()
    file = private(tmp_path / "callers", f'[[caller]]\nname = "nova"\ntoken_sha256 = "{digest}"\n')
    ended: list[bool] = []

    class Endless:
        async def events(self, _cursor: str, _vms: list[str]):
            try:
                while True:
                    yield {"cursor": "e0-0", "operation": ""}
            finally:
                ended.append(True)

    async def receive() -> dict:
        return {"type": "http.disconnect"}

    async def send(_message: dict) -> None:
        raise OSError("the caller is gone")

    shared = app.Gateway(upstream=Endless(), callers=load_callers(file), limits=LimitSettings())
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/events",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {token}".encode())],
    }
    for _ in range(5):
        with pytest.raises(OSError, match="gone"):
            await app.application(shared)(scope, receive, send)
    assert (shared.streams, len(ended)) == ({}, 5)


async def test_cursors_that_are_none(gateway: RunningGateway) -> None:
    """A refusal is a status, not a stream that ends at once."""
    client = gateway.client()
    for cursor, status, reason in (
        ("nonsense", 400, "INVALID_REQUEST"),
        ("e0-" + "1" * 200, 400, "INVALID_REQUEST"),
        ("e7-0", 409, "CONFLICT"),
    ):
        check(await client.get("/v1/events", params={"cursor": cursor}), status, reason)


# --- configuration ---------------------------------------------------------------------------


class TestConfiguration:
    GOOD: ClassVar[dict] = {
        "authority": {"server": "a:1", "ca": "/ca", "certificate": "/c", "key": "/k"},
        "callers": "/callers",
        "state_dir": "/state",
    }

    @pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::", "localhost", "example.org"])  # noqa: S104
    def test_only_loopback_without_tls(self, address: str) -> None:
        """Tokens don't travel in the clear: what is not loopback by number needs TLS."""
        with pytest.raises(ValueError, match="loopback"):
            GatewaySettings.model_validate(self.GOOD | {"listen": {"address": address}})
        tls = {"certificate": "/c", "key": "/k"}
        GatewaySettings.model_validate(self.GOOD | {"listen": {"address": address, "tls": tls}})

    @pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
    def test_loopback(self, address: str) -> None:
        """The default needs no certificate."""
        GatewaySettings.model_validate(self.GOOD | {"listen": {"address": address}})

    def test_files_that_others_can_use(self, tmp_path: Path) -> None:
        """N60: configuration and callers of mode 0644 are refused."""
        token, digest = new_token()
        assert token.startswith("tag_")
        path = private(
            tmp_path / "callers.toml", f'[[caller]]\nname = "a"\ntoken_sha256 = "{digest}"\n'
        )
        assert len(load_callers(path).entries) == 1
        path.chmod(0o644)
        for read in (load_callers, load):
            with pytest.raises(InsecureFile):
                read(path)

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "nonsense",
            "caller = []",
            '[[caller]]\nname = "a"\n',
            '[[caller]]\nname = "A"\ntoken_sha256 = "{0}"\n',
            '[[caller]]\nname = "a"\ntoken_sha256 = "short"\n',
            '[[caller]]\nname = "a"\ntoken = "plain"\n',
            '[[caller]]\nname = "a"\ntoken_sha256 = "{0}"\ncertificate_key_sha256 = "{1}"\n',
            '[[caller]]\nname = "a"\ntoken_sha256 = "{0}"\n[[caller]]\nname = "a"\ntoken_sha256 = "{1}"\n',
            '[[caller]]\nname = "a"\ntoken_sha256 = "{0}"\n[[caller]]\nname = "b"\ntoken_sha256 = "{0}"\n',
        ],
    )
    def test_callers_that_are_none(self, tmp_path: Path, content: str) -> None:
        """A file with a mistake serves nobody."""
        path = private(tmp_path / "callers.toml", content.format("a" * 64, "b" * 64))
        with pytest.raises(ConfigurationInvalid):
            load_callers(path)

    def test_every_problem_at_once(self, tmp_path: Path) -> None:
        """Unknown keys and missing ones are all told, with their paths."""
        path = private(tmp_path / "gateway.toml", 'x = 1\n[authority]\nserver = "a:1"\n')
        with pytest.raises(ConfigurationInvalid) as refused:
            load(path)
        for told in ("x:", "authority.ca:", "callers:", "state_dir:"):
            assert told in str(refused.value)


# --- the description -------------------------------------------------------------------------


def test_the_description_has_every_route() -> None:
    """OpenAPI and routes are one."""
    routes = {
        (method, route.path)
        for route in app.application(None).routes  # type: ignore[arg-type]
        for method in route.methods - {"HEAD"}
    }
    assert routes == set(operations())


def test_the_description_refers_to_what_is_there() -> None:
    """No reference into nothing."""
    text = json.dumps(DESCRIPTION)
    named_schemas = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert named_schemas == set(DESCRIPTION["components"]["schemas"])


async def test_answers_fit_their_description(gateway: RunningGateway) -> None:
    """Each field that is described is there, and of its type."""
    client = gateway.client()
    schemas = DESCRIPTION["components"]["schemas"]
    kinds = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}
    body = {"candidates": [{"vm": "vm-1", "host": "h-1"}]}
    records = {
        "Vm": (await client.get("/v1/vms/vm-1")).json(),
        "Answer": (await client.post("/v1/placement/check", json=body)).json()["answers"][0],
        "Candidate": (await client.get("/v1/vms/vm-1/candidates")).json()["candidates"][0],
        "Intent": (await client.post("/v1/intents", json={"vm": "vm-1", "host": "h-1"})).json(),
        "Problem": (await client.get("/v1/vms/none")).json(),
    }
    for name, record in records.items():
        for field, schema in schemas[name]["properties"].items():
            if name == "Problem" and field == "requestId":
                continue
            names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            fits = any(
                record[field] is None if kind == "null" else isinstance(record[field], kinds[kind])
                for kind in names
            )
            assert fits, (name, field, record[field])


def test_no_call_of_the_gateway_can_return_a_key() -> None:
    """The only calls that it makes are these; none of them has a key or a grant in its answer."""
    allowed = {
        "CheckPlacement", "ListCandidates", "ListIntents", "CreateIntent", "ListMoveOrders",
        "OrderMove", "CancelMoveOrder", "ListVms", "GetVm", "WatchPlacement",
    }  # fmt: skip
    made = set()
    for path in (PROJECT / "trustauthority/gateway").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                made |= {node.attr} if node.value.id == "s" else set()
    assert made == allowed
    for name in allowed:
        fields = json.dumps([field.name for field in named(name).reply.DESCRIPTOR.fields])
        assert "key_grant" not in fields
