"""``hostagent vm``: encrypt a VM's disk, print its profile, move it by libvirt.

Stage: edge. A passphrase is never printed and never stands in a file. Exit status as in
``hostagent.main``.
"""

import asyncio
import json
import subprocess
import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from hostagent.control import Json
from hostagent.direct import ask_or_do
from hostagent.domain import MOVE, DefinitionInvalid, read_domain
from hostagent.settings import DEFAULT_CONFIG, Settings, load
from hostagent.terminal import narrate, refused, say
from hostagent.virsh import Virsh

Config = Annotated[Path, Parameter(name="--config", help="Configuration file (TOML).")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]
Flag = Annotated[bool, Parameter(negative="")]
_SWITCH_S = 20.0

vm_app = App(name="vm", help="Protected VMs of libvirt on this host.")


@vm_app.command
def encrypt(vm: str, *, disk: Path, out: Path, config: Config = DEFAULT_CONFIG) -> int:
    """Write a disk again, encrypted with the VM's key. The key is fetched for it and given back.

    Args:
        vm: The VM.
        disk: The disk as it is; any format that qemu-img knows.
        out: The encrypted disk (qcow2 with LUKS); must not exist.
        config: Configuration file (TOML).
    """
    request = {"do": "vm-encrypt", "vm": vm, "disk": str(disk.absolute())}
    answer = _ask(load(config), {**request, "out": str(out.absolute())})
    if not answer["ok"]:
        return refused(answer)
    say(answer["disk"])
    return 0


@vm_app.command
def profile(definition: Path, *, as_json: AsJson = False) -> int:
    """Print the profile digest of a definition, for ta vm protect --profile-sha256.

    Args:
        definition: The domain's XML, as virsh dumpxml --inactive prints it.
        as_json: Print JSON.
    """
    try:
        domain = read_domain(definition.read_bytes())
    except DefinitionInvalid as failure:
        narrate(f"{definition}: {failure}")
        return 2
    shown = {"vm": domain.vm_id, "uuid": domain.uuid, "profile_sha256": domain.profile_sha256.hex()}
    say(json.dumps(shown, indent=1) if as_json else shown["profile_sha256"])
    return 0


@vm_app.command
def migrate(
    domain: str,
    destination: str,
    to_uri: str,
    *,
    config: Config = DEFAULT_CONFIG,
    migrate_uri: str = "",
    tls: bool = True,
    unsafe: Flag = False,
) -> int:
    """Move a running VM to another host: offer, copy, switch, resume. Run it on the VM's host.

    Args:
        domain: The libvirt domain.
        destination: The host's name at the authority.
        to_uri: The destination's libvirt, as for virsh migrate.
        config: Configuration file (TOML).
        migrate_uri: Where the memory goes, as for virsh migrate --migrateuri.
        tls: Encrypt the memory on its way. It holds the key of the disk.
        unsafe: As for virsh migrate --unsafe.
    """
    settings = load(config)
    if settings.libvirt.uri is None:
        narrate("libvirt.uri is not configured on this host")
        return 2
    virsh = Virsh(uri=settings.libvirt.uri, timeout_s=settings.libvirt.timeout_ms / 1000)
    code, definition, problem = asyncio.run(virsh.run("dumpxml", domain))
    if code != 0:
        narrate(problem)
        return 3
    try:
        vm = read_domain(definition.encode()).vm_id
    except DefinitionInvalid as failure:
        narrate(f"{domain}: {failure}")
        return 2
    offered = _ask(settings, {"do": "move-offer", "vm": vm, "destination": destination})
    if not offered["ok"]:
        return refused(offered)
    narrate(f"offered to {destination}")
    words = [*("--tls",) * tls, *("--unsafe",) * unsafe]
    words += ["--migrateuri", migrate_uri] if migrate_uri else []
    return _Move(settings, virsh, domain, vm, offered["move_id"]).to(to_uri, words)


class _Move:
    def __init__(
        self, settings: Settings, virsh: Virsh, domain: str, vm: str, move_id: str
    ) -> None:
        self._settings, self._virsh = settings, virsh
        self._domain, self._vm, self._move_id = domain, vm, move_id

    def to(self, uri: str, words: list[str]) -> int:
        began = time.monotonic()
        mark = f"<move id='{self._move_id}'/>"
        code, _, problem = self._metadata("--set", mark)
        if code == 0:
            code, problem = self._copy(uri, words)
        if code != 0:
            self._metadata("--remove")
            narrate(problem or "virsh migrate failed")
            return self._stay()
        narrate(f"copied in {time.monotonic() - began:.1f} s; this host hands over")
        deadline = time.monotonic() + _SWITCH_S
        while time.monotonic() < deadline:
            state = asyncio.run(Virsh(uri=uri, timeout_s=10).state(self._domain)) or ""
            if state.startswith("running"):
                say(f"{self._vm} runs at its destination after {time.monotonic() - began:.1f} s")
                return 0
            time.sleep(0.2)
        narrate("it does not run at its destination yet; see hostagent status on both hosts")
        return 5

    def _metadata(self, *change: str) -> tuple[int, str, str]:
        where = ("metadata", self._domain, MOVE, "--key", "ta", *change, "--live")
        return asyncio.run(self._virsh.run(*where))

    def _copy(self, uri: str, words: list[str]) -> tuple[int, str]:
        command = ("virsh", "-q", "-c", self._virsh.uri, "migrate", "--live", "--suspend")
        options = ("--persistent", "--undefinesource", "--verbose", *words)
        done = subprocess.run(
            (*command, *options, self._domain, uri), check=False, stderr=subprocess.PIPE, text=True
        )
        return done.returncode, done.stderr.strip()

    def _stay(self) -> int:
        aborted = _ask(self._settings, {"do": "move-abort", "vm": self._vm})
        narrate("it stays here" if aborted["ok"] else f"{aborted['reason']}: {aborted['detail']}")
        return 1


def _ask(settings: Settings, request: Json) -> Json:
    answer, _ = asyncio.run(ask_or_do(settings, request))
    return answer
