"""Shared secrets on a host: the root-only socket, systemd-cryptsetup, clevis, and KMS v2 over gRPC."""

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from support.agent_authority import VM_KEY, Authority, Trouble, refusal
from support.agent_host import AgentWorld

from hostagent import secret_desk
from hostagent.failure import CallFailed
from hostagent.kubernetes import kms_v2_pb2 as pb
from hostagent.kubernetes import kms_v2_pb2_grpc
from hostagent.kubernetes.plugin import FORMAT_KEY, kms_served
from hostagent.secret_front import shared_secrets_served
from hostagent.settings import ConfigurationInvalid
from hostagent.shared import HeldSecret, SharedSecrets
from trustauthority.v1 import keyprovider_pb2 as kp

PROJECT = Path(__file__).resolve().parents[2]
ME = os.getuid()
CONFIG = f"""
[secrets.data]
subject = "esx-data"
users = [{ME}]
volumes = ["vault"]
[secrets.theirs]
users = [{ME + 1}]
"""
pytestmark = pytest.mark.timeout(120)


class Clock:
    """CLOCK_BOOTTIME that tests move."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
async def authority():
    made = Authority()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def world(tmp_path, authority):
    return AgentWorld(tmp_path, authority, extra=CONFIG)


@asynccontextmanager
async def agent_of(world, clock):
    """An enrolled agent, not running its loop."""
    await world.host().enrol(lambda _step, _seconds: None)
    agent = world.agent(clock)
    agent._connect()
    try:
        yield agent
    finally:
        await agent.close()


@asynccontextmanager
async def serving(world, clock):
    async with agent_of(world, clock) as agent, shared_secrets_served(agent):
        yield world.root / "run" / "secrets.sock"


def ask(path: Path, line: bytes = b"", *, name: bytes = b"") -> bytes:
    """What a program of the host gets."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        if name:
            connection.bind(name)
        connection.connect(str(path))
        if line:
            connection.sendall(line)
        found = b""
        with suppress(ConnectionResetError):  # hung up on before it had read all that was sent
            while part := connection.recv(4096):
                found += part
        return found


async def asked(path, line=b"", **how):
    return await asyncio.to_thread(ask, path, line, **how)


class TestSocket:
    async def test_a_secret_is_handed_out_under_a_lease(self, world, authority, clock):
        """A program of the host gets the secret that its section names, by a release of its own."""
        async with serving(world, clock) as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert await asked(path, b"data\n") == VM_KEY
            assert await asked(path, b"data\n") == VM_KEY
        sent = authority.asked_for("RequestKey")
        assert [(each.vm_id, each.purpose) for each in sent] == [
            ("esx-data", kp.KEY_PURPOSE_SHARE)
        ] * 2
        assert len({each.request_id for each in sent}) == 2
        assert not path.exists()

    @pytest.mark.parametrize(
        "line", [b"theirs\n", b"unknown\n", b"\n", b"../data\n", b"\xff\n", b"d" * 300 + b"\n"]
    )
    async def test_what_is_not_allowed(self, world, authority, clock, line):
        """Another user's secret, an unknown one, or rubbish: nothing, and the authority is not asked."""
        async with serving(world, clock) as path:
            assert await asked(path, line) == b""
        assert authority.asked_for("RequestKey") == []

    async def test_another_user(self, world, authority, clock, monkeypatch):
        """SO_PEERCRED decides, whatever the mode of the socket became."""
        monkeypatch.setattr(secret_desk, "_peer_user", lambda _connection: ME + 7)
        async with serving(world, clock) as path:
            assert await asked(path, b"data\n") == b""
        assert authority.asked_for("RequestKey") == []

    async def test_a_silent_caller_holds_nobody_up(self, world, authority, clock, monkeypatch):
        """Whoever connects and says nothing is hung up on; others are served meanwhile."""
        monkeypatch.setattr(secret_desk, "_ASK_WITHIN_S", 0.2)
        async with serving(world, clock) as path:
            silent = asyncio.create_task(asked(path))
            assert await asked(path, b"data\n") == VM_KEY
            assert await silent == b""

    @pytest.mark.parametrize(
        "trouble", [refusal("HOST_NOT_ATTESTED"), refusal("KEY_NOT_PERMITTED"), Trouble()]
    )
    async def test_the_authority_says_no_or_nothing(self, world, authority, clock, trouble):
        """S1: a host that is not trusted now unlocks nothing, nor one whose authority is silent."""
        authority.trouble["RequestKey"] = [trouble] * 9
        async with serving(world, clock) as path:
            assert await asked(path, b"data\n") == b""

    async def test_an_answer_later_than_its_lease(self, world, authority, clock):
        """N50: the lease counts from the first send: a secret that comes after it is not opened."""
        authority.lease_ms = 1_000
        async with agent_of(world, clock) as agent:

            async def slow(subject, send):
                answered = await agent.call_for_vm(subject, send)
                clock.now += 1_000
                return answered

            secrets = SharedSecrets(call=slow, opener=agent.opener, clock_ms=clock)
            got = bytearray()
            with pytest.raises(CallFailed, match="LEASE_OVER"):
                await secrets.lend("esx-data", got.extend)
            assert got == b""

    async def test_a_grant_to_run_is_not_taken_for_a_secret(
        self, world, authority, clock, monkeypatch
    ):
        """N57: the purpose is signed: a grant of a VM is refused where a secret was asked for."""
        from support import agent_authority

        run = agent_authority._PURPOSES[kp.KEY_PURPOSE_START]
        monkeypatch.setitem(agent_authority._PURPOSES, kp.KEY_PURPOSE_SHARE, run)
        async with serving(world, clock) as path:
            assert await asked(path, b"data\n") == b""

    def test_settings(self, world):
        """One volume, one secret; no configured secret, no socket."""
        world.extra = CONFIG + '[secrets.more]\nvolumes = ["vault"]\n'
        with pytest.raises(ConfigurationInvalid, match="one secret"):
            world.host()
        world.extra = '[kubernetes]\nsubject = "etcd"\nsocket = "kms.sock"\n'
        with pytest.raises(ConfigurationInvalid, match=r"kubernetes\.socket"):
            world.host()


class TestCryptsetup:
    async def test_by_the_name_of_its_volume(self, world, authority, clock):
        """systemd-cryptsetup sends nothing: its socket's own name says which volume it unlocks."""
        async with serving(world, clock) as path:
            assert await asked(path, name=b"\0" + b"1f" * 8 + b"/cryptsetup/vault") == VM_KEY
            assert await asked(path, name=b"\0" + b"2f" * 8 + b"/cryptsetup/other") == b""

    async def test_the_real_systemd_cryptsetup_gets_the_key(
        self, world, authority, clock, tmp_path
    ):
        """The real program takes its key from the socket by its volume's name; that key opens the volume.

        Activation itself needs device-mapper. A kernel without it says so, before it tries the key:
        that the key is right is then shown by cryptsetup's own test.
        """
        image, other = _luks(tmp_path, VM_KEY), _luks(tmp_path, b"another one", "other.img")
        async with serving(world, clock) as path:
            said = await asyncio.to_thread(_attach, "vault", image, path)
            assert "device-mapper" in said if said else _detach("vault")
            assert [each.vm_id for each in authority.asked_for("RequestKey")] == ["esx-data"]
            unknown = await asyncio.to_thread(_attach, "unknown", image, path)
            assert len(authority.asked_for("RequestKey")) == 1
            assert unknown != ""
            key = await asked(path, name=b"\0" + b"1f" * 8 + b"/cryptsetup/vault")
        for volume, opens in ((image, True), (other, False)):
            words = ("cryptsetup", "open", "--test-passphrase", "--key-file", "-", volume)
            assert (_run(*words, given=key).returncode == 0) is opens


class TestClevis:
    async def test_bind_and_pass_with_the_real_clevis(self, world, authority, clock, tmp_path):
        """clevis luks bind/pass with our pin on a LUKS2 file; refused once the host is not trusted."""
        folder = _pins(tmp_path, world.config)
        image, first = tmp_path / "disk.img", tmp_path / "first"
        first.write_bytes(b"first passphrase")
        _run("truncate", "-s", "20M", image)
        cheap = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
        _run("cryptsetup", "luksFormat", "-q", "--type", "luks2", *cheap, image, first)
        settings = f'{{"secret":"data","config":"{world.config}"}}'
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        async with serving(world, clock):
            bound = await asyncio.to_thread(
                _run,
                *("clevis", "luks", "bind", "-y", "-k", first, "-d", image, "ta", settings),
                environment=environment,
            )
            assert bound.returncode == 0, bound.stderr
            passed = await asyncio.to_thread(
                _run, "clevis", "luks", "pass", "-d", image, "-s", "1", environment=environment
            )
            assert passed.returncode == 0, passed.stderr
            opened = _run(
                "cryptsetup",
                "open",
                "--test-passphrase",
                "--key-file",
                "-",
                image,
                given=passed.stdout,
            )
            assert opened.returncode == 0, opened.stderr
            authority.trouble["RequestKey"] = [refusal("HOST_NOT_ATTESTED")] * 9
            denied = await asyncio.to_thread(
                _run, "clevis", "luks", "pass", "-d", image, "-s", "1", environment=environment
            )
            assert denied.returncode != 0
            assert denied.stdout == b""
        assert VM_KEY not in image.read_bytes()
        assert VM_KEY not in bound.stdout + bound.stderr + passed.stdout + passed.stderr

    async def test_another_secret_opens_nothing(self, world, authority, clock, tmp_path):
        """What was sealed with one secret does not open with another."""
        folder = _pins(tmp_path, world.config)
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        settings = f'{{"secret":"data","config":"{world.config}"}}'

        async def clevis(*words, given):
            return await asyncio.to_thread(
                _run, "clevis", *words, given=given, environment=environment
            )

        async with serving(world, clock):
            sealed = (await clevis("encrypt", "ta", settings, given=b"plain")).stdout
            assert (await clevis("decrypt", given=sealed)).stdout == b"plain"
            authority.secret = b"another secret"
            assert (await clevis("decrypt", given=sealed)).returncode != 0
            for wrong in ("[]", "{}", '{"secret":"unknown"}', "rubbish"):
                assert (await clevis("encrypt", "ta", wrong, given=b"plain")).returncode != 0


class TestHeld:
    @asynccontextmanager
    async def held(self, world, clock):
        async with agent_of(world, clock) as agent:
            secrets = SharedSecrets(call=agent.call_for_vm, opener=agent.opener, clock_ms=clock)
            yield HeldSecret(subject="etcd", secrets=secrets)

    async def test_renewed_at_a_third_by_a_new_release(self, world, authority, clock):
        """Each renewal is a release of its own: attested, decided, audited."""
        authority.lease_ms = 30_000
        async with self.held(world, clock) as held:
            assert await held.step() == 10
            assert held.current() == (VM_KEY, 1)
            clock.now += 9_999
            assert await held.step() == pytest.approx(0.001)
            clock.now += 1
            await held.step()
            assert len(authority.asked_for("RequestKey")) == 2

    async def test_silence_lets_the_lease_run_out_and_wipes(self, world, authority, clock):
        """I-B: while the authority is silent the lease goes on; at its end the key is overwritten."""
        authority.lease_ms = 30_000
        async with self.held(world, clock) as held:
            await held.step()
            kept = held.key
            authority.trouble["RequestKey"] = [Trouble()] * 99
            clock.now += 29_999
            await held.step()
            assert held.current() == (VM_KEY, 1)
            clock.now += 1
            assert held.current() is None
            assert kept == bytes(len(VM_KEY))
            assert held.refusal == "its lease ended"

    async def test_a_refusal_wipes_at_once(self, world, authority, clock):
        """N55: told that it is not trusted any more, the host keeps nothing for the rest of the lease."""
        async with self.held(world, clock) as held:
            await held.step()
            kept = held.key
            clock.now += authority.lease_ms // 2
            authority.trouble["RequestKey"] = [refusal("HOST_REVOKED")] * 9
            await held.step()
            assert held.current() is None
            assert (kept, held.refusal) == (bytes(len(VM_KEY)), "HOST_REVOKED")

    async def test_stopping_wipes(self, world, authority, clock):
        """A stopped agent keeps nothing."""
        async with self.held(world, clock) as held:
            stop = asyncio.Event()
            keeping = asyncio.create_task(held.run(stop))
            for _ in range(1_000):
                if held.lent is not None:
                    break
                await asyncio.sleep(0.01)
            kept = held.key
            assert kept == VM_KEY
            stop.set()
            await keeping
            assert (kept, held.current()) == (bytes(len(VM_KEY)), None)


class TestKmsV2:
    @asynccontextmanager
    async def plugin(self, world, clock):
        async with agent_of(world, clock) as agent:
            secrets = SharedSecrets(call=agent.call_for_vm, opener=agent.opener, clock_ms=clock)
            held = HeldSecret(subject="etcd", secrets=secrets)
            path = world.root / "run" / "kms.sock"
            async with kms_served(path, held):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                    yield held, kms_v2_pb2_grpc.KeyManagementServiceStub(channel)

    async def test_the_contract(self, world, authority, clock):
        """As the API server calls it: status, encrypt, decrypt; the key id is stable and names the key."""
        async with self.plugin(world, clock) as (held, kms):
            await held.step()
            for _ in range(2):
                status = await kms.Status(pb.StatusRequest())
                assert (status.version, status.healthz, status.key_id) == ("v2", "ok", "etcd/1")
            sealed = await kms.Encrypt(pb.EncryptRequest(plaintext=b"data key seed", uid="1"))
            again = await kms.Encrypt(pb.EncryptRequest(plaintext=b"data key seed", uid="2"))
            assert sealed.key_id == "etcd/1"
            assert sealed.ciphertext != again.ciphertext
            assert b"data key seed" not in sealed.ciphertext
            opened = await kms.Decrypt(_decrypt(sealed))
            assert opened.plaintext == b"data key seed"

    async def test_another_host_opens_it(self, world, authority, clock, tmp_path):
        """Shared: what one control-plane host encrypted, another attested one decrypts."""
        (tmp_path / "b").mkdir()
        second = AgentWorld(tmp_path / "b", authority, extra=CONFIG)
        async with self.plugin(world, clock) as (held, kms):
            await held.step()
            sealed = await kms.Encrypt(pb.EncryptRequest(plaintext=b"seed", uid="1"))
        async with self.plugin(second, clock) as (held, kms):
            await held.step()
            assert (await kms.Decrypt(_decrypt(sealed))).plaintext == b"seed"

    async def test_what_does_not_open(self, world, authority, clock):
        """N57: changed, cut, of another key, of another format: refused with a gRPC code."""
        async with self.plugin(world, clock) as (held, kms):
            await held.step()
            sealed = await kms.Encrypt(pb.EncryptRequest(plaintext=b"seed", uid="1"))
            flipped = sealed.ciphertext[:-1] + bytes([sealed.ciphertext[-1] ^ 1])
            cases = [
                ({"ciphertext": flipped}, grpc.StatusCode.INVALID_ARGUMENT),
                ({"ciphertext": sealed.ciphertext[:10]}, grpc.StatusCode.INVALID_ARGUMENT),
                ({"ciphertext": b""}, grpc.StatusCode.INVALID_ARGUMENT),
                ({"key_id": "etcd/2"}, grpc.StatusCode.FAILED_PRECONDITION),
                ({"key_id": ""}, grpc.StatusCode.FAILED_PRECONDITION),
                ({"annotations": {}}, grpc.StatusCode.INVALID_ARGUMENT),
                ({"annotations": {FORMAT_KEY: b"2"}}, grpc.StatusCode.INVALID_ARGUMENT),
            ]
            for changes, code in cases:
                assert await _code(kms.Decrypt(_decrypt(sealed, **changes))) is code, changes
            too_long = pb.EncryptRequest(plaintext=bytes(65_537))
            assert await _code(kms.Encrypt(too_long)) is grpc.StatusCode.INVALID_ARGUMENT
            authority.secret = b"another secret of the same epoch"
            clock.now += authority.lease_ms // 2
            await held.step()
            assert await _code(kms.Decrypt(_decrypt(sealed))) is grpc.StatusCode.INVALID_ARGUMENT

    async def test_a_new_epoch_is_another_key(self, world, authority, clock):
        """Documented: older ciphertexts name the older epoch and are refused, never mistaken."""
        async with self.plugin(world, clock) as (held, kms):
            await held.step()
            sealed = await kms.Encrypt(pb.EncryptRequest(plaintext=b"seed", uid="1"))
            authority.secret, authority.key_epoch = b"the next secret", 2
            clock.now += authority.lease_ms // 2
            await held.step()
            assert (await kms.Status(pb.StatusRequest())).key_id == "etcd/2"
            code = await _code(kms.Decrypt(_decrypt(sealed)))
            assert code is grpc.StatusCode.FAILED_PRECONDITION

    async def test_without_a_lease(self, world, authority, clock):
        """Lease lost: Encrypt and Decrypt refuse, Status says why, the key is overwritten."""
        authority.lease_ms = 30_000
        async with self.plugin(world, clock) as (held, kms):
            for why in ("it was not asked for yet", "its lease ended"):
                status = await kms.Status(pb.StatusRequest())
                assert (status.healthz, status.key_id) == (f"no lease: {why}", "")
                refused = [
                    kms.Encrypt(pb.EncryptRequest(plaintext=b"seed")),
                    kms.Decrypt(pb.DecryptRequest(ciphertext=b"c" * 40, key_id="etcd/1")),
                ]
                for call in refused:
                    assert await _code(call) is grpc.StatusCode.UNAVAILABLE
                await held.step()
                kept = held.key
                clock.now += 30_000
                assert held.current() is None
                assert kept == bytes(len(VM_KEY))

    async def test_the_agent_serves_it(self, world, authority, clock):
        """From the configuration alone: [kubernetes] subject and socket."""
        path = world.root / "run" / "kms.sock"
        world.extra = f'[kubernetes]\nsubject = "etcd"\nsocket = "{path}"\n'
        async with (
            agent_of(world, clock) as agent,
            shared_secrets_served(agent),
            grpc.aio.insecure_channel(f"unix:{path}") as channel,
        ):
            kms = kms_v2_pb2_grpc.KeyManagementServiceStub(channel)
            for _ in range(500):
                if (await kms.Status(pb.StatusRequest())).healthz == "ok":
                    break
                await asyncio.sleep(0.02)
            assert (await kms.Status(pb.StatusRequest())).key_id == "etcd/1"
        assert not path.exists()
        assert authority.asked_for("RequestKey")[0].purpose == kp.KEY_PURPOSE_SHARE


def _decrypt(sealed, **changes) -> pb.DecryptRequest:
    values = {
        "ciphertext": sealed.ciphertext,
        "key_id": sealed.key_id,
        "annotations": dict(sealed.annotations),
        "uid": "3",
    }
    return pb.DecryptRequest(**{**values, **changes})


async def _code(call) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code()


def _run(*words, given=None, environment=None):
    return subprocess.run(
        [str(each) for each in words],
        input=given,
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )


def _luks(folder: Path, passphrase: bytes, name: str = "vault.img") -> Path:
    image, key = folder / name, folder / f"{name}.key"
    key.write_bytes(passphrase)
    _run("truncate", "-s", "20M", image)
    cheap = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    made = _run("cryptsetup", "luksFormat", "-q", "--type", "luks2", *cheap, image, key)
    assert made.returncode == 0, made.stderr
    return image


def _attach(volume: str, image: Path, path: Path) -> str:
    words = (
        "/lib/systemd/systemd-cryptsetup",
        "attach",
        volume,
        image,
        path,
        "luks,headless,tries=1",
    )
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "debug", "SYSTEMD_LOG_TARGET": "console"}
    done = _run(*words, environment=environment)
    return done.stderr.decode() if done.returncode else ""


def _detach(volume: str) -> bool:
    return _run("/lib/systemd/systemd-cryptsetup", "detach", volume).returncode == 0


def _pins(folder: Path, config: Path) -> Path:
    """The pin's two programs and ``hostagent`` on one path."""
    pins = folder / "pins"
    pins.mkdir()
    for name in ("clevis-encrypt-ta", "clevis-decrypt-ta"):
        shutil.copy(PROJECT / "deploy" / "clevis" / name, pins / name)
    command = pins / "hostagent"
    code = "from hostagent.main import main; main()"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    command.chmod(0o755)
    assert config.exists()
    return pins
