"""Between protobuf messages and the model: one function per noun; sizes and presence are checked here."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from trustauthority.errors import InvalidRequest
from trustauthority.model.baseline import Component
from trustauthority.model.catalogue import (
    AnchorKind,
    IdentityEntry,
    Role,
)
from trustauthority.model.host import Admission
from trustauthority.model.identifiers import is_name, is_request_id
from trustauthority.model.placement import KeyState, LeaseClass, LeaseTerms, Sharing, VmState
from trustauthority.model.tpm import PcrSelection
from trustauthority.model.verdict import Check, CheckState, Standing
from trustauthority.model.vm import IntentEntry, VmEntry, VmKeyEntry
from trustauthority.services.hosts import HostView
from trustauthority.v1 import (
    admin_pb2,
    attestation_pb2,
    common_pb2,
    keyprovider_pb2,
    placement_pb2,
)

MAX_PAGE = 500
DEFAULT_PAGE = 100
MAX_TEXT = 1024
HEX_DIGITS = frozenset("0123456789abcdef")

STANDINGS = {
    Standing.PASSED: common_pb2.STANDING_PASSED,
    Standing.FAILED: common_pb2.STANDING_FAILED,
    Standing.UNKNOWN: common_pb2.STANDING_UNKNOWN,
}
CHECK_STATES = {
    CheckState.PASSED: common_pb2.CHECK_STATE_PASSED,
    CheckState.FAILED: common_pb2.CHECK_STATE_FAILED,
    CheckState.WARNING: common_pb2.CHECK_STATE_WARNING,
    CheckState.SKIPPED: common_pb2.CHECK_STATE_SKIPPED,
}
ADMISSIONS = {
    Admission.ADMITTED: attestation_pb2.ADMISSION_ADMITTED,
    Admission.WAITING: attestation_pb2.ADMISSION_WAITING,
    Admission.REMOVED: attestation_pb2.ADMISSION_REMOVED,
}
KEY_STATES = {
    KeyState.PRE_ACTIVE: keyprovider_pb2.KEY_STATE_PRE_ACTIVE,
    KeyState.ACTIVE: keyprovider_pb2.KEY_STATE_ACTIVE,
    KeyState.SUSPENDED: keyprovider_pb2.KEY_STATE_SUSPENDED,
    KeyState.DEACTIVATED: keyprovider_pb2.KEY_STATE_DEACTIVATED,
    KeyState.COMPROMISED: keyprovider_pb2.KEY_STATE_COMPROMISED,
    KeyState.DESTROYED: keyprovider_pb2.KEY_STATE_DESTROYED,
    KeyState.DESTROYED_COMPROMISED: keyprovider_pb2.KEY_STATE_DESTROYED_COMPROMISED,
}
LEASE_CLASSES = {
    LeaseClass.STRICT: keyprovider_pb2.LEASE_CLASS_STRICT,
    LeaseClass.STANDARD: keyprovider_pb2.LEASE_CLASS_STANDARD,
    LeaseClass.UNLIMITED: keyprovider_pb2.LEASE_CLASS_UNLIMITED,
}
SHARING = {
    Sharing.EXCLUSIVE: keyprovider_pb2.SHARING_EXCLUSIVE,
    Sharing.SHARED: keyprovider_pb2.SHARING_SHARED,
}
ROLES = {role: admin_pb2.Role.Value(f"ROLE_{role.name}") for role in Role}
ANCHOR_KINDS = {
    AnchorKind.CA: admin_pb2.ANCHOR_KIND_CA,
    AnchorKind.EK: admin_pb2.ANCHOR_KIND_EK,
}
COMPONENTS = {
    part: admin_pb2.BootComponent.Value(f"BOOT_COMPONENT_{part.name}") for part in Component
}


# --- what comes in ---------------------------------------------------------------------------


def name(value: str, field: str) -> str:
    """A name or id by its grammar (N44)."""
    if not is_name(value):
        raise InvalidRequest(
            f"{field}: 1-63 characters of a-z 0-9 . _ -, beginning and ending with one of a-z 0-9",
            field=field,
        )
    return value


def optional_name(value: str, field: str) -> str:
    """A name, or nothing."""
    return name(value, field) if value else ""


def request_id(value: str, field: str = "request_id") -> str:
    """A request id by its grammar."""
    if not is_request_id(value):
        raise InvalidRequest(f"{field}: 16-64 characters of A-Z a-z 0-9 _ -", field=field)
    return value


def epoch(value: int, field: str = "grant_epoch") -> int:
    """An epoch: positive."""
    if value < 1:
        raise InvalidRequest(f"{field} is positive", field=field)
    return value


def text(value: str, field: str) -> str:
    """Free text of bounded length without control characters."""
    if len(value) > MAX_TEXT or any(ord(each) < 32 or ord(each) == 127 for each in value):
        raise InvalidRequest(
            f"{field}: at most {MAX_TEXT} printable characters on one line", field=field
        )
    return value


def sha256_hex(value: str, field: str) -> str:
    """A hash as people copy it: 64 hex digits."""
    digest = value.lower()
    if len(digest) != 64 or not set(digest) <= HEX_DIGITS:
        raise InvalidRequest(f"{field} is 64 hex digits", field=field)
    return digest


def page_size(value: int) -> int:
    """The size of a page."""
    if value < 0:
        raise InvalidRequest("page_size is not negative", field="page_size")
    return min(value or DEFAULT_PAGE, MAX_PAGE)


def roles(values: Iterable[int]) -> frozenset[Role]:
    """Roles by their numbers."""
    by_number: dict[int, Role] = {number: role for role, number in ROLES.items()}
    try:
        return frozenset(by_number[value] for value in values)
    except KeyError as error:
        raise InvalidRequest("roles: an unknown role", field="roles") from error


def component(value: int) -> Component | None:
    """A component; None for all of them."""
    if value == admin_pb2.BOOT_COMPONENT_UNSPECIFIED:
        return None
    found: Component = chosen(COMPONENTS, value, "component")
    return found


def chosen(table: Mapping[Any, int], value: int, field: str) -> Any:
    """The model's member for an enum number; unspecified and unknown ones are refused."""
    for member, number in table.items():
        if number == value:
            return member
    raise InvalidRequest(f"{field} must be given", field=field)


# --- what goes out ---------------------------------------------------------------------------


def timestamp(value_ms: int | None) -> Timestamp | None:
    """A time; absent for none."""
    if not value_ms or value_ms >= 253_402_300_800_000:
        return None
    made = Timestamp()
    made.FromMilliseconds(value_ms)
    return made


def check(value: Check) -> common_pb2.Check:
    """A check tree."""
    return common_pb2.Check(
        id=value.id,
        state=CHECK_STATES[value.state],
        title=value.title,
        expected=value.expected,
        found=value.found,
        detail=value.detail,
        remedy=value.remedy,
        pcr=value.pcr,
        event_index=value.event_index,
        children=[check(child) for child in value.children],
    )


def stored_check(value: Mapping[str, Any]) -> common_pb2.Check:
    """A check tree from a stored verdict document."""
    return common_pb2.Check(
        id=value["id"],
        state=CHECK_STATES[CheckState(value["state"])],
        title=value["title"],
        expected=value["expected"],
        found=value["found"],
        detail=value["detail"],
        remedy=value["remedy"],
        pcr=value["pcr"],
        event_index=value["event_index"],
        children=[stored_check(child) for child in value["children"]],
    )


def stored_verdict(stored: Mapping[str, Any]) -> common_pb2.Verdict:
    """A verdict from its stored document."""
    document = json.loads(stored["document"])
    return common_pb2.Verdict(
        verdict_id=stored["verdict_id"],
        host_id=document["host_id"],
        standing=STANDINGS[Standing.PASSED if document["passed"] else Standing.FAILED],
        decided_at=timestamp(document["decided_at_ms"]),
        attested_until=timestamp(document["attested_until_ms"]),
        policy=document["policy"],
        policy_epoch=document["policy_epoch"],
        baseline=document["baseline"],
        checks=[stored_check(each) for each in document["checks"]],
        evidence_sha256=stored["evidence_sha256"],
    )


def host(view: HostView) -> admin_pb2.Host:
    """A host with its standing."""
    record = view.host
    return admin_pb2.Host(
        host_id=record.host_id,
        name=record.name,
        cluster=record.cluster_id,
        admission=ADMISSIONS[record.admission],
        revoked=record.revoked,
        standing=STANDINGS[view.standing],
        standing_since=timestamp(record.standing_since_ms),
        attested_until=timestamp(record.attested_until_ms),
        baseline=record.baseline,
        reason=record.reason,
        ek_sha256=record.ek_sha256,
        tpm=record.tpm,
        approval_sha256=record.approval_sha256,
        enrolled_at=timestamp(record.enrolled_at_ms),
        trust_epoch=record.trust_epoch,
        vms=view.vms,
        host_class=record.host_class,
        warned=record.warned,
        draining=record.draining,
    )


def selections(values: Iterable[PcrSelection]) -> list[common_pb2.PcrSelection]:
    """What to quote."""
    return [common_pb2.PcrSelection(bank=str(each.bank), indices=each.indices) for each in values]


def lease(terms: LeaseTerms) -> common_pb2.LeaseTerms:
    """Lease terms; 0 stands for unlimited."""
    return common_pb2.LeaseTerms(
        lease_ms=0 if terms.is_unlimited else terms.lease_ms,
        continue_for_ms=terms.continue_for_ms,
        skew_ms=terms.skew_ms,
        on_lease_loss=common_pb2.OnLeaseLoss.Value(f"ON_LEASE_LOSS_{terms.on_lease_loss.name}"),
    )


def vm(entry: VmEntry, names: Mapping[str, str]) -> keyprovider_pb2.Vm:
    """A VM; ``names`` gives host names by id."""
    terms = LeaseTerms(
        lease_ms=entry.lease_ms,
        continue_for_ms=entry.continue_for_ms,
        skew_ms=entry.skew_ms,
        on_lease_loss=entry.on_lease_loss,
    )
    return keyprovider_pb2.Vm(
        vm_id=entry.vm_id,
        cluster=entry.cluster_id,
        lease_class=LEASE_CLASSES[entry.lease_class],
        lease=lease(terms),
        any_host=entry.any_host_of_cluster,
        sharing=SHARING[entry.sharing],
        profile_digest=entry.profile_sha256,
        owner_host_id=entry.owner or "",
        owner_host_name=names.get(entry.owner or "", ""),
        grant_epoch=entry.grant_epoch,
        lease_until=timestamp(entry.lease_until_ms),
        fence_until=timestamp(entry.fence_until_ms),
        last_owner_host_id=entry.last_owner or "",
        retired=entry.state is VmState.RETIRED,
        key_state=(
            keyprovider_pb2.KEY_STATE_UNSPECIFIED
            if entry.key_state is None
            else KEY_STATES[entry.key_state]
        ),
    )


def vm_key(entry: VmKeyEntry) -> keyprovider_pb2.VmKey:
    """A key's record, without its secret."""
    return keyprovider_pb2.VmKey(
        vm_id=entry.vm_id,
        key_epoch=entry.key_epoch,
        state=KEY_STATES[entry.state],
        provider=entry.provider,
        kek_id=entry.kek_id,
        created_at=timestamp(entry.created_at_ms),
        created_by=entry.created_by,
        changed_at=timestamp(entry.changed_at_ms),
        destroy_at=timestamp(entry.destroy_at_ms),
    )


def key_release(entry: Mapping[str, Any]) -> keyprovider_pb2.KeyRelease:
    """A release, from its audit entry."""
    details = entry["details"]
    return keyprovider_pb2.KeyRelease(
        vm_id=entry["subject"],
        host_id=str(entry["actor"]).removeprefix("host:"),
        host_name=details["host"],
        grant_epoch=int(details.get("grant_epoch", 0)),
        released_at=timestamp(entry["time_ms"]),
    )


def intent(entry: IntentEntry, names: Mapping[str, str]) -> placement_pb2.Intent:
    """An intent."""
    return placement_pb2.Intent(
        intent_id=entry.intent_id,
        vm_id=entry.vm_id,
        host_id=entry.destination,
        host_name=names.get(entry.destination, ""),
        created_by=entry.created_by,
        expires_at=timestamp(entry.expires_ms),
        used=entry.used_by is not None,
    )


def identity(entry: IdentityEntry) -> admin_pb2.Identity:
    """An identity."""
    return admin_pb2.Identity(
        name=entry.name,
        roles=sorted(ROLES[role] for role in entry.roles),
        key_sha256=entry.key_sha256,
        revoked=entry.revoked,
        certificate_expires_at=timestamp(entry.certificate_expires_ms),
        issued_by=entry.issued_by,
    )
