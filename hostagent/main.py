"""The ``hostagent`` command: composition root of the agent.

Stage: edge. Guarantees the exit codes: 0 yes, 1 the answer is no, 2 asked or configured wrongly,
4 denied, 5 no answer now. Data goes to stdout, narration to stderr, keys nowhere but into files.
"""

import asyncio
import datetime as dt
import hashlib
import json
import os
import signal
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
from cyclopts import App, Parameter

from hostagent import logs
from hostagent.bundle import collect_bundle, write_bundle
from hostagent.control import Json, NoDaemon, ask, serve
from hostagent.direct import agent_of, attest_once
from hostagent.enforcement import NoEnforcement
from hostagent.failure import CallFailed
from hostagent.files import BrokenState, InsecureFile
from hostagent.front import handle
from hostagent.hook_front import hooks_served
from hostagent.host import AgentRuns, only_agent, open_host
from hostagent.keys import KeyStateInvalid, TpmChanged, forget_keys
from hostagent.libvirt_commands import vm_app
from hostagent.libvirt_vms import LibvirtVms
from hostagent.secret_commands import secret_app
from hostagent.secret_front import shared_secrets_served
from hostagent.settings import DEFAULT_CONFIG, ConfigurationInvalid, load
from hostagent.terminal import narrate, refused, say
from hostagent.tpm import TpmError
from hostagent.vm_commands import key_app, move_app

Config = Annotated[Path, Parameter(name="--config", help="Configuration file (TOML).")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]

app = App(name="hostagent", help=__doc__.splitlines()[0], version="0.1.0")
app.command(key_app)
app.command(move_app)
app.command(vm_app)
app.command(secret_app)

_log = structlog.get_logger("hostagent")


@app.command
def run(*, config: Config = DEFAULT_CONFIG) -> int:
    """Serve: enrol, attest, keep leases. What systemd starts."""
    return asyncio.run(_serve(config))


@app.command
def enrol(
    *,
    config: Config = DEFAULT_CONFIG,
    name: str | None = None,
    cluster: str | None = None,
    accept_new_authority: Annotated[bool, Parameter(negative="")] = False,
    new_keys: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Enrol this host now and show each step. The daemon does it by itself, too.

    Args:
        config: Configuration file (TOML).
        name: Label to ask for, instead of host.name.
        cluster: Trusted cluster, instead of host.cluster.
        accept_new_authority: Follow an authority that shows other keys than at the last enrolment.
        new_keys: Drop the kept keys first: after TPM2_Clear, or when the mainboard was replaced.
    """
    if new_keys:
        settings = load(config)
        with only_agent(settings.paths.run_dir):
            forget_keys(settings.paths.state_dir)
    return asyncio.run(
        _enrol(config, name=name, cluster=cluster, accept_new_authority=accept_new_authority)
    )


@app.command
def attest(*, config: Config = DEFAULT_CONFIG, as_json: AsJson = False) -> int:
    """Attest once and print the standing. Exit status 1 means FAILED."""
    answer = asyncio.run(_attest(config))
    if as_json:
        say(json.dumps(answer, indent=1))
    elif answer["ok"]:
        say("PASSED" if answer["passed"] else "FAILED")
        for check in answer["failed"][:5]:
            say(f"✖ {check['id']}: {check['title']}")
            say(f"    expected  {check['expected']}\n    found     {check['found']}")
            say(f"    remedy    {check['remedy']}")
    if not answer["ok"]:
        return refused(answer)
    return 0 if answer["passed"] else 1


@app.command
def collect(*, out: Path, config: Config = DEFAULT_CONFIG) -> int:
    """Write an evidence bundle for support. Needs no authority.

    Args:
        out: Where to write the tar.
        config: Configuration file (TOML).
    """
    settings = load(config)
    with open_host(settings) as host:
        labels = {"host": settings.host.name, "cluster": settings.host.cluster}
        if host.identity is not None:
            labels["host_id"] = host.identity.host_id
        now = dt.datetime.now(dt.UTC)
        write_bundle(out, collect_bundle(host.tpm, host.keys, host.logs, labels=labels, now=now))
    say(str(out))
    return 0


@app.command
def endorsement(*, config: Config = DEFAULT_CONFIG, as_json: AsJson = False) -> int:
    """Show this TPM's endorsement key: its SHA-256 is what the authority's inventory lists."""
    settings = load(config)
    with open_host(settings) as host:
        public = host.keys.endorsement.key.public
        answer = {
            "ek_sha256": hashlib.sha256(public).hexdigest(),
            "algorithm": str(host.keys.endorsement.algorithm),
            "certificate": bool(host.keys.endorsement.certificate),
        }
    if as_json:
        say(json.dumps(answer, indent=1))
    else:
        for key, value in answer.items():
            say(f"{key.replace('_', ' '):14}{value}")
        say(f"register it:  ta inventory add --ek-sha256 {answer['ek_sha256']} --name NAME")
    return 0


@app.command
def status(*, config: Config = DEFAULT_CONFIG, as_json: AsJson = False) -> int:
    """Show what the running agent knows. Exit status 0 means PASSED, 5 that none runs."""
    answer = asyncio.run(_status(config))
    if as_json:
        say(json.dumps(answer, indent=1))
    else:
        for key, value in answer.items():
            if key not in {"ok", "vms", "failed_checks"} and value is not None:
                say(f"{key.replace('_', ' '):22}{value}")
        for vm in answer["vms"]:
            left = "unlimited" if vm["lease_unlimited"] else f"{vm['lease_left_ms']} ms left"
            say(f"vm {vm['vm']}: {vm['phase']}, epoch {vm['grant_epoch']}, {left}")
        for check in answer["failed_checks"]:
            say(f"✖ {check['id']}: {check['title']}: {check['remedy']}")
    return 0 if answer["phase"] == "passed" else 1


# --- doing it ------------------------------------------------------------------------------------


async def _serve(config: Path) -> int:
    settings = load(config)
    async with agent_of(settings) as agent:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.halt)
        server = await serve(settings.paths.run_dir, partial(handle, agent))
        if isinstance(agent.enforcement, NoEnforcement):
            _log.warning("no-enforcement", detail="VMs that lose their lease are not stopped here")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(server)
            if isinstance(agent.enforcement, LibvirtVms):
                await stack.enter_async_context(hooks_served(agent, agent.enforcement))
            await stack.enter_async_context(shared_secrets_served(agent))
            await agent.run()
    return 0


async def _enrol(
    config: Path, *, name: str | None, cluster: str | None, accept_new_authority: bool
) -> int:
    settings = load(config)

    def seen(step: str, seconds: float) -> None:
        narrate(f"✔ {step:16} {seconds * 1000:7.1f} ms")

    with only_agent(settings.paths.run_dir), open_host(settings) as host:
        identity = await host.enrol(
            seen, name=name, cluster=cluster, accept_new_authority=accept_new_authority
        )
    say(f"{identity.host_id} {identity.name} {identity.admission.value}")
    return 0


async def _attest(config: Path) -> Json:
    return await attest_once(load(config))


async def _status(config: Path) -> Json:
    settings = load(config)
    return await ask(settings.paths.run_dir, {"do": "status"}, 10)


def main() -> None:
    """Run the command line and exit."""
    logs.configure()
    try:
        status_code = guarded(sys.argv[1:])
    except KeyboardInterrupt:
        status_code = 130
    except Exception:  # noqa: BLE001 - the last resort: say so, and that it is a bug
        _log.exception("bug")
        status_code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is closed and on disk. A gRPC thread of a call that ended with an error can outlive
    # its channel when the TLS key signs through us, and would keep the process from ending.
    os._exit(status_code)


def guarded(arguments: list[str]) -> int:
    """Run one command; expected failures become a sentence and an exit status."""
    try:
        result = app(arguments, exit_on_error=True, result_action="return_value")
    except CallFailed as error:
        narrate(str(error))
        return error.failure.exit_code
    except (ConfigurationInvalid, InsecureFile, BrokenState, KeyStateInvalid) as error:
        narrate(str(error))
        return 2
    except TpmChanged as error:
        narrate(f"{error} If that was on purpose: hostagent enrol --new-keys")
        return 1
    except (TpmError, AgentRuns, NoDaemon, TimeoutError) as error:
        narrate(str(error) or "no answer in time")
        return 5
    except OSError as error:
        narrate(str(error))
        return 2
    return int(result or 0)
