# ruff: noqa: D417 - options is documented by its class
"""``ta vm protect``: record a VM, or take a whole libvirt domain of this host under protection."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from trustauthority.cli import host_program
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.hexes import sha256_argument
from trustauthority.cli.options import DEFAULTS, ClusterName, DryRun, Options
from trustauthority.cli.render import STRONG, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.vm_view import vm_fields
from trustauthority.client.errors import ClientError
from trustauthority.errors import AlreadyExists, FailedPrecondition, InvalidRequest

if TYPE_CHECKING:
    from trustauthority.v1.keyprovider_pb2 import ProtectVmRequest, Vm


class Lease(StrEnum):
    """How long a host may run a VM without asking again."""

    DEFAULT = "default"
    STRICT = "strict"
    STANDARD = "standard"
    UNLIMITED = "unlimited"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDisk:
    """A disk that is to be made for the VM, as it was asked for; hostagent judges the words."""

    place: str
    size: str
    target: str
    thin: bool

    @property
    def words(self) -> list[str | Path]:
        """For hostagent. Raises InvalidRequest."""
        if not self.place:
            if self.size or self.target or self.thin:
                raise InvalidRequest("--new-disk says where the disk is to be", field="new_disk")
            return []
        if not self.size:
            raise InvalidRequest("give the disk's size, as --new-size 20GiB", field="new_size")
        words: list[str | Path] = ["--new-disk", self.place, "--new-size", self.size]
        words += ["--new-target", self.target] if self.target else []
        return words + ["--new-thin"] * self.thin


@dataclass(frozen=True, slots=True, kw_only=True)
class OnHost:
    """The libvirt domain of this machine that becomes the VM."""

    domain: str
    vm: str
    config: Path | None
    passphrase: Path | None
    erase: bool
    new_disk: "NewDisk"

    def ask(self, *words: str) -> dict[str, Any]:
        """Have hostagent plan it, or do it."""
        command: list[str | Path] = ["vm", "protect", self.domain, "--vm", self.vm, *words]
        if self.passphrase is not None:
            command += ["--passphrase-file", self.passphrase]
        command += ["--erase-old-passphrase"] * self.erase
        command += self.new_disk.words
        if self.config is not None:
            command += ["--config", self.config]
        limit_s = host_program.PROFILE_S if "--plan" in words else host_program.PROTECT_S
        return host_program.ask_host(*command, limit_s=limit_s)


def protect(
    vm: str,
    /,
    *,
    cluster: ClusterName = "",
    lease: Lease = Lease.DEFAULT,
    any_host: Annotated[bool, Parameter(negative="")] = False,
    shared: Annotated[bool, Parameter(negative="")] = False,
    profile_sha256: Annotated[str, Parameter(name="--profile-sha256")] = "",
    domain: str = "",
    passphrase_file: Path | None = None,
    erase_old_passphrase: Annotated[bool, Parameter(negative="")] = False,
    new_disk: str = "",
    new_size: str = "",
    new_target: str = "",
    new_thin: Annotated[bool, Parameter(negative="")] = False,
    host_config: Path | None = None,
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Put a VM under protection: its key goes only to the one host that may run it.

    With --domain, on the VM's host: records the VM with the profile of its new definition, makes its
    key, has hostagent encrypt the disks and define the domain anew; with --new-disk it gets one more disk. It can
    be repeated after a failure.

    Args:
        vm: Id of the VM: 1-63 of a-z 0-9 . _ -.
        cluster: The cluster whose hosts may run it.
        lease: How long a host may go on without asking again; unlimited never fences a lost host.
        any_host: Any admitted host of the cluster may start it without a placement intent.
        shared: Not a VM but a secret that several hosts of the cluster may hold at a time.
        profile_sha256: SHA-256 of its canonical domain profile; another definition is refused.
        domain: The libvirt domain of this machine to encrypt and mark; shut off.
        passphrase_file: With --domain: file (mode 600) whose first line opens disks that are LUKS already.
        erase_old_passphrase: With --domain: take that passphrase out when the VM's opens the disks.
        new_disk: With --domain: also make this disk, empty and encrypted: an absolute path, or POOL/VOLUME.
        new_size: With --new-disk: its size, as 20GiB.
        new_target: With --new-disk: what the guest calls it; the first free vdX when not given.
        new_thin: With --new-disk: it may be larger than what is free there now.
        host_config: With --domain: configuration of hostagent, if it is not the usual one.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import keyprovider_pb2 as keys

    here = OnHost(
        domain=domain,
        vm=vm,
        config=host_config,
        passphrase=passphrase_file,
        erase=erase_old_passphrase,
        new_disk=NewDisk(place=new_disk, size=new_size, target=new_target, thin=new_thin),
    )
    if domain and (profile_sha256 or shared):
        raise InvalidRequest("--domain gives the profile, of one VM", field="domain")
    if here.new_disk.words and not domain:
        raise InvalidRequest("--domain says which domain gets the new disk", field="domain")
    plan = here.ask("--plan") if domain else {}
    profile = host_program.digest_in(plan) if domain else b""
    if profile_sha256:
        profile = sha256_argument(profile_sha256, "--profile-sha256")
    with session(options) as ta:
        request = keys.ProtectVmRequest(
            vm_id=vm,
            cluster=ta.cluster(cluster),
            lease_class=_class(lease),
            any_host=any_host,
            sharing=keys.SHARING_SHARED if shared else keys.SHARING_UNSPECIFIED,
            profile_digest=profile,
        )
        if dry_run:
            _tell(ta, plan)
            ta.would_send(request)
            return ExitCode.YES
        record = _recorded(ta, request, again=bool(domain))
        fields = vm_fields(ta.screen, record)
        if domain:
            _give_key(ta, record, str(plan.get("host", "")))
            plan = here.ask()
            _tell(ta, plan)
            fields.append(Field("next", f"virsh start {domain}"))
        else:
            fields.append(Field("next", f"ta key create {record.vm_id}"))
        title = Marked(text=f"VM {record.vm_id} is protected", style=STRONG)
        ta.screen.record(title, fields, name=record.vm_id, data=record)
    return ExitCode.YES


def _class(lease: Lease) -> "Any":
    from trustauthority.v1 import keyprovider_pb2 as keys

    return {
        Lease.DEFAULT: keys.LEASE_CLASS_UNSPECIFIED,
        Lease.STRICT: keys.LEASE_CLASS_STRICT,
        Lease.STANDARD: keys.LEASE_CLASS_STANDARD,
        Lease.UNLIMITED: keys.LEASE_CLASS_UNLIMITED,
    }[lease]


def _recorded(ta: Session, request: "ProtectVmRequest", *, again: bool) -> "Vm":
    """The VM's record: a new one, or (again) the one that an earlier try left with the same profile."""
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import VmServiceStub

    service = ta.authority.on(VmServiceStub)
    try:
        return service.write(lambda s: s.ProtectVm, request).vm
    except ClientError as error:
        if not again or error.reason != AlreadyExists.reason:
            raise
    found = service.read(lambda s: s.GetVm, keys.GetVmRequest(vm_id=request.vm_id)).vm
    if found.profile_digest != request.profile_digest:
        raise FailedPrecondition(
            f"VM {request.vm_id} is protected with another profile: ta vm reprofile {request.vm_id} "
            f"--profile-sha256 {request.profile_digest.hex()}, then repeat"
        )
    return found


def _give_key(ta: Session, record: "Vm", host: str) -> None:
    """A key for the VM, if it has none, and a reason for this host to get it once."""
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1 import placement_pb2 as placement
    from trustauthority.v1.keyprovider_pb2_grpc import KeyProviderServiceStub
    from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

    try:
        request = keys.CreateKeyRequest(vm_id=record.vm_id)
        ta.authority.on(KeyProviderServiceStub).write(lambda s: s.CreateKey, request)
    except ClientError as error:
        if error.reason != AlreadyExists.reason:
            raise
    if not record.any_host and record.last_owner_host_id == "":
        intent = placement.CreateIntentRequest(vm_id=record.vm_id, host=host)
        ta.authority.on(PlacementServiceStub).write(lambda s: s.CreateIntent, intent)


def _tell(ta: Session, plan: dict[str, Any]) -> None:
    """What happens, or happened, to each disk."""
    for disk in plan.get("disks", ()):
        was, now = str(disk.get("plain", "")), str(disk.get("disk", ""))
        kept = f"; {was} is in the clear: remove it when the VM has started" if was != now else ""
        kept += "; new and empty" if disk.get("was") == "new" else ""
        ta.screen.say(f"  disk {disk.get('target', '')}  {now}{kept}")


def add_to(app: App) -> None:
    """Register the command with ``ta vm``."""
    app.command(
        protect,
        help_epilogue=examples(
            "ta vm protect payroll --cluster prod --lease strict",
            "ta vm protect payroll --cluster prod --domain payroll",
            "ta vm protect payroll --domain payroll --new-disk /var/lib/libvirt/images/payroll.qcow2 --new-size 20GiB",
            "ta vm protect payroll --cluster prod --profile-sha256 91ab…07",
        ),
    )
