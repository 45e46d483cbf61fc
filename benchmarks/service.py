"""Attestation and release, end to end: latency, and CPU of the authority per request.

Real processes, real gRPC over mutual TLS with a TPM key, swtpm hosts, the KMIP mock. CPU is that of
the serving processes (their children included), in units of one RSA-2048 verification measured in
the same run, so that figures of two machines can be compared. Bounded: ROUNDS requests of each kind.

    make bench
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "deploy" / "demo"), str(ROOT / "tests")]
os.environ["TSS2_LOG"] = "all+none"

from acts import act_1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from narrate import Narrator
from stage import Stage
from steps import VM

import hostagent  # noqa: F401 - sets the TLS version before gRPC is first imported
from hostagent.direct import agent_of
from hostagent.settings import load

ROUNDS = 30
TICKS = os.sysconf("SC_CLK_TCK")


def rsa_verify_us() -> float:
    """CPU microseconds of one RSA-2048 verification: the unit."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    message = bytes(145)
    scheme, digest = padding.PKCS1v15(), hashes.SHA256()
    signature, public = key.sign(message, scheme, digest), key.public_key()
    rounds = []
    for _ in range(7):
        began = time.thread_time_ns()
        for _ in range(300):
            public.verify(signature, message, scheme, digest)
        rounds.append((time.thread_time_ns() - began) / 300 / 1000)
    return statistics.median(rounds)


def cpu_ms(pid: int) -> float:
    """CPU milliseconds of a process and of its ended and living children."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(path.parent.name) == pid:
            total += sum(map(int, fields[11:15]))
        elif int(fields[1]) == pid:
            total += sum(map(int, fields[11:13]))
    return total * 1000 / TICKS


async def measure(
    name: str, pid: int, unit_us: float, work: Callable[[], Awaitable[object]]
) -> None:
    """Run one kind of request ROUNDS times and print its figures."""
    await work()
    before, latencies = cpu_ms(pid), []
    for _ in range(ROUNDS):
        began = time.monotonic()
        await work()
        latencies.append((time.monotonic() - began) * 1000)
    used_us = (cpu_ms(pid) - before) * 1000 / ROUNDS
    latencies.sort()
    print(
        f"{name:<34}{statistics.median(latencies):8.1f} ms p50 {latencies[int(ROUNDS * 0.95)]:8.1f} ms p95"
        f"{used_us / 1000:9.2f} ms CPU {used_us / unit_us:8.0f} RSA"
    )


async def play(stage: Stage, unit_us: float) -> None:
    """Attest and request a key again and again with the agent's own code."""
    settings = load(stage.hosts["host-a"].config)
    pids = {name: stage.processes[name].pid for name in ("attest", "key")}
    async with agent_of(settings) as agent:
        agent.keeper.take_up()
        agent.keeper.allow(True)
        await measure(
            "attest (known logs, one quote)",
            pids["attest"],
            unit_us,
            lambda: agent.attest_once(fresh=False),
        )
        request = {"do": "key-request", "vm": VM, "request_id": "bench-request-0001"}

        async def ask() -> None:
            answer = await agent.desk.handle(dict(request))
            if not answer["ok"]:
                raise SystemExit(f"no key: {answer}")

        await measure("release (two transactions and KMS)", pids["key"], unit_us, ask)
        await agent.close()


def main() -> None:
    """Set the stage, warm up, measure."""
    unit_us = rsa_verify_us()
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(folder=Path(folder))
        try:
            act_1(stage, Narrator())
            for words in (
                ("baseline", "capture", "lab", "--host", "host-a", "-c", "lab"),
                ("baseline", "approve", "lab", "-c", "lab", "--yes"),
                ("vm", "protect", VM, "--cluster", "lab", "--any-host"),
                ("key", "create", VM),
            ):
                if words[1] == "capture":
                    stage.agent("host-a", "attest")
                done = stage.ta(*words)
                if done.code:
                    raise SystemExit(done.said)
            stage.agent("host-a", "attest")
            print(f"\none RSA-2048 verification: {unit_us:.1f} us CPU; {ROUNDS} rounds each\n")
            asyncio.run(play(stage, unit_us))
        finally:
            stage.close()


if __name__ == "__main__":
    main()
