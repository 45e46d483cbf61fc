#!/usr/bin/python3 -IS
"""libvirt's qemu hook, and with ``--watchdog FILE`` the watchdog of one VM. One file to install.

Stage: outside the agent; the standard library only, and few modules of it: libvirt waits for each
call. Trusts root's files and, for yes or no, the agent on its socket (mode 0600, in a folder of mode
0700). Guarantees: a VM that carries our mark starts, arrives or is restored only after the agent
said yes, within a deadline of its own; other VMs are none of its business, unless their definition
can't be read or uses a key that a protected VM lent to libvirt; ``reconnect`` never fails (libvirt
would kill the running VM); nothing reaches stdout (libvirt would take it for a definition).

The watchdog kills QEMU when the deadline that the agent renews has passed, by CLOCK_BOOTTIME,
whatever became of agent and libvirt. It does not decide anything else.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # the real constant would cost a third of this program's start
    import socket
    from typing import Any

    Config = dict[str, Any]

CONFIG = "/etc/libvirt/hooks/trustauthority.json"
MARK = "urn:trustauthority:vm:1"
USAGE = "ta:"
"""What the usage of each secret begins with that the agent lends to libvirt."""
LARGEST = 64 << 20
"""Bytes of a definition that are read; libvirt's own limit is below."""
LARGEST_MARKED = 1 << 20
"""Bytes of a definition that the agent is asked about."""
ASKS = ("prepare", "started", "migrate", "restore", "release")
MAY_REFUSE = ("prepare", "started", "migrate", "restore")
DEFAULTS: Config = {
    "run_dir": "/run/trustauthority-hostagent",
    "pid_dir": "/run/libvirt/qemu",
    "deadline_s": 45,
    "release_deadline_s": 5,
    "marks_required": False,
}
_BEAT_S = 0.5


class Refused(Exception):
    """The message is what the administrator reads in virsh."""


# --- the hook --------------------------------------------------------------------------------


def hook(arguments: list[str]) -> int:
    """Answer one call of libvirt: the exit status. Arguments: domain, operation, two more."""
    operation = arguments[1] if len(arguments) > 1 else ""
    if operation not in ASKS:
        return 0  # reconnect above all
    name = arguments[0]
    try:
        config = read_config(CONFIG)
        definition = sys.stdin.buffer.read(LARGEST + 1)
        decide(name, operation, definition, config)
    except Refused as refusal:
        return _refuse(name, operation, str(refusal))
    except Exception as bug:  # any doubt is a refusal
        return _refuse(name, operation, f"the hook failed: {type(bug).__name__}: {bug}")
    return 0


def _refuse(name: str, operation: str, why: str) -> int:
    sys.stderr.write(f"trustauthority: VM {name}: {why}\n")
    sys.stderr.flush()
    return 1 if operation in MAY_REFUSE else 0


def decide(name: str, operation: str, definition: bytes, config: Config) -> None:
    """Raise Refused unless the operation may go on."""
    if len(definition) > LARGEST:
        raise Refused("its definition is larger than this hook reads")
    marked, secrets = look(definition)
    if not marked:
        if operation in ("prepare", "migrate", "restore"):
            _check_unmarked(secrets, config)
        return
    if operation == "restore":
        raise Refused(
            "the saved memory of a protected VM is not restored: it holds the key of its disk."
            " Start it afresh; virsh managedsave-remove forgets the saved memory"
        )
    if len(definition) > LARGEST_MARKED:
        raise Refused("its definition is larger than 1 MiB")
    limit = config["release_deadline_s" if operation == "release" else "deadline_s"]
    request = {"do": "hook", "operation": operation, "name": name}
    request["definition"] = definition.decode("utf-8")
    answer = ask(os.path.join(config["run_dir"], "hook.sock"), request, limit)
    if answer.get("ok") is not True:
        raise Refused(
            f"{answer.get('reason', 'REFUSED')}: {answer.get('detail', 'no reason given')}"
        )
    if answer.get("watch"):
        watch(os.path.join(config["run_dir"], "vms", os.path.basename(answer["watch"])))


def look(definition: bytes) -> tuple[bool, set[str]]:
    """Whether a definition carries our mark, and the ids or usages of all secrets that it uses."""
    from xml.parsers import expat

    path: list[str] = []
    secrets: set[str] = set()
    marks: list[str] = []

    def began(tag: str, attributes: dict[str, str]) -> None:
        path.append(tag)
        if tag == MARK + " vm" and path[:-1] == ["domain", "metadata"]:
            marks.append(attributes.get("id", ""))
        if tag == "secret" and "uuid" in attributes:
            secrets.add(attributes["uuid"].lower())
        if tag == "secret" and "usage" in attributes:  # libvirt looks it up by either
            secrets.add(attributes["usage"])
        if tag == "encryption" and "secret" in attributes:
            secrets.add(attributes["secret"].lower())

    def doctype(*_: object) -> None:
        raise Refused("its definition has a document type")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = began
    parser.EndElementHandler = lambda _tag: path.pop()
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(definition, True)
    except expat.ExpatError as failure:
        raise Refused(f"its definition can't be read: {failure}") from failure
    return bool(marks), secrets


def _check_unmarked(secrets: set[str], config: Config) -> None:
    lent = os.path.join(config["run_dir"], "lent")
    for secret in secrets:
        is_file = os.path.basename(secret) == secret
        if secret.startswith(USAGE) or (is_file and os.path.exists(os.path.join(lent, secret))):
            raise Refused(
                f"it is not marked as protected, but uses secret {secret} of a VM that is"
            )
    if secrets and config["marks_required"]:
        raise Refused("this host starts VMs with encrypted disks only if they are protected")


def read_config(path: str) -> Config:
    """The hook's settings: root's file, or the defaults when there is none."""
    import json
    import stat

    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(65536)
    except FileNotFoundError:
        return dict(DEFAULTS)
    if status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & 0o022:
        raise Refused(f"{path} can be changed by others than root")
    found = json.loads(content)
    unknown = set(found) - set(DEFAULTS)
    if unknown:
        raise Refused(f"{path}: unknown: {', '.join(sorted(unknown))}")
    return {**DEFAULTS, **found}


def ask(path: str, request: dict[str, str], limit_s: float) -> dict[str, Any]:
    """The agent's answer. A socket that nobody serves yet is tried again until the deadline."""
    import json
    import socket

    deadline = time.monotonic() + limit_s
    line = json.dumps(request).encode() + b"\n"
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Refused(f"HOST_AGENT_SILENT: hostagent did not answer within {limit_s} s")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            agent.settimeout(left)
            try:
                agent.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(min(0.1, left))
                if deadline - time.monotonic() <= 0:
                    raise Refused(
                        "HOST_AGENT_DOWN: hostagent does not run on this host,"
                        " or is not set up for libvirt"
                    ) from None
                continue
            try:
                agent.sendall(line)
                return _answer(agent, deadline)
            except TimeoutError:
                continue  # the deadline above says it


def _answer(agent: socket.socket, deadline: float) -> dict[str, Any]:
    import json

    received = b""
    while not received.endswith(b"\n"):
        agent.settimeout(max(deadline - time.monotonic(), 0.001))
        part = agent.recv(65536)
        if not part or len(received) > 65536:
            raise Refused("HOST_AGENT_HUNG_UP: hostagent ended while it was asked")
        received += part
    answer = json.loads(received)
    return answer if isinstance(answer, dict) else {}


# --- the watchdog ----------------------------------------------------------------------------


def watch(state: str) -> None:
    """Start the watchdog of a VM: a process that neither libvirt nor the agent waits for."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, 1024)
    me = os.path.realpath(__file__)
    os.execv(sys.executable or "/usr/bin/python3", ["ta-watchdog", "-IS", me, "--watchdog", state])


def watchdog(state: str) -> int:
    """Kill QEMU when its deadline has passed; end when it is gone and nothing is awaited."""
    import fcntl

    config = read_config(CONFIG)
    lock = os.open(state + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # the watchdog of an earlier life may still be at it
    known = None
    while True:
        read = read_deadline(state)
        known = read or known
        if known is None:
            return 0
        qemu = find_qemu(config["pid_dir"], known)
        left = known["at_ms"] - time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        if left <= 0 and qemu is not None:
            _kill(qemu, known)
        elif qemu is None and (read is None or left <= 0):
            return 0
        time.sleep(_BEAT_S if left > 1000 * _BEAT_S else 0.05 if left > 0 else 0.2)


def read_deadline(state: str) -> dict[str, Any] | None:
    """What the agent wrote: name, uuid, at_ms; None when there is nothing (any more)."""
    import json

    try:
        with open(state, "rb") as file:
            found = json.loads(file.read(65536))
        return {
            "name": str(found["name"]),
            "uuid": str(found["uuid"]),
            "at_ms": int(found["at_ms"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_qemu(pid_dir: str, known: dict[str, Any]) -> int | None:
    """The process id of a VM's QEMU, checked by its command line; None when there is none."""
    try:
        with open(os.path.join(pid_dir, known["name"] + ".pid"), "rb") as file:
            pid = int(file.read(32))
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(1 << 20).split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if known["uuid"].encode() in words else None


def _kill(pid: int, known: dict[str, Any]) -> None:
    import signal
    import syslog

    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if known["uuid"].encode() not in file.read(1 << 20).split(b"\0"):
                return
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except OSError:
        return
    finally:
        os.close(process)
    syslog.openlog("ta-watchdog")
    syslog.syslog(
        syslog.LOG_CRIT,
        f"killed QEMU of VM {known['name']} ({known['uuid']}), pid {pid}: its lease was not renewed",
    )


def main() -> int:
    """Run as hook or as watchdog."""
    if sys.argv[1:2] == ["--watchdog"]:
        return watchdog(sys.argv[2])
    nothing = os.open("/dev/null", os.O_WRONLY)
    os.dup2(nothing, 1)  # whatever prints by accident prints nothing
    return hook(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
