"""The one authorisation matrix: each RPC of the descriptors has a row, default deny (N02).

A test walks the descriptors, so that an RPC without a row fails it.
"""

from dataclasses import dataclass
from enum import StrEnum

from trustauthority.errors import RoleRequired, Unauthenticated
from trustauthority.model.catalogue import IdentityEntry, Role
from trustauthority.model.host import Admission, HostRecord


class Listener(StrEnum):
    """Where a call came in."""

    ENROL = "enrol"
    MUTUAL = "mutual"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls: a host, a registered identity, or (on the enrolment listener) nobody known."""

    listener: Listener
    peer: str
    host: HostRecord | None = None
    identity: IdentityEntry | None = None
    certificate_ends_ms: int = 0
    """When the certificate that the connection showed ends."""
    key_pem: bytes = b""
    """SubjectPublicKeyInfo (PEM) of the certificate that the connection showed."""

    on_behalf_of: str = ""
    """Whom an identity says that it asks for: told in the audit log, and good for nothing else."""

    @property
    def actor(self) -> str:
        """Who is to be named for what this call does."""
        return f"{self.name}/{self.on_behalf_of}" if self.on_behalf_of else self.name

    @property
    def name(self) -> str:
        """Whose certificate the call shows."""
        if self.host is not None:
            return f"host:{self.host.host_id}"
        return f"identity:{self.identity.name}" if self.identity else "anonymous"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who may make a call."""

    listener: Listener = Listener.MUTUAL
    host: bool = False
    roles: frozenset[Role] = frozenset()


def _roles(*roles: Role) -> Rule:
    return Rule(roles=frozenset(roles))


_ENROL = Rule(listener=Listener.ENROL)
_HOST = Rule(host=True)
_READ = _roles(*Role)
_POLICY = _roles(Role.POLICY)
_HOSTS = _roles(Role.HOSTS)
_KEYS = _roles(Role.KEYS)
_PLACEMENT = _roles(Role.PLACEMENT)
_IDENTITY = _roles(Role.IDENTITY)
_SEE_POLICY = _roles(Role.POLICY, Role.HOSTS, Role.AUDITOR, Role.APPROVER, Role.OPERATOR)
_SEE_HOSTS = _roles(
    Role.HOSTS, Role.POLICY, Role.KEYS, Role.AUDITOR, Role.APPROVER, Role.OPERATOR, Role.PLACEMENT
)
_SEE_KEYS = _roles(Role.KEYS, Role.AUDITOR)
_SEE_VMS = _roles(Role.KEYS, Role.AUDITOR, Role.OPERATOR, Role.PLACEMENT)
_SEE_PLACEMENT = _roles(Role.PLACEMENT, Role.OPERATOR, Role.AUDITOR)
_ORDER = _roles(Role.PLACEMENT, Role.OPERATOR)
_AUDIT = _roles(Role.AUDITOR)

MATRIX: dict[str, dict[str, Rule]] = {
    "EnrolmentService": {"GetEnrolmentChallenge": _ENROL, "Enrol": _ENROL, "Activate": _ENROL},
    "AttestationService": {"GetChallenge": _HOST, "Attest": _HOST, "WatchHost": _HOST},
    "KeyProviderService": {
        "CreateKey": _KEYS,
        "ListKeys": _SEE_KEYS,
        "GetKey": _SEE_KEYS,
        "RequestKey": _HOST,
        "RenewLease": _HOST,
        "GiveBackKey": _HOST,
    },
    "KeyAdministrationService": {
        "ChangeKeyState": _KEYS,
        "DestroyKey": _KEYS,
        "CancelDestroyKey": _KEYS,
        "RollKey": _KEYS,
        "SwitchKey": _KEYS,
        "GetImportKey": _KEYS,
        "ImportKey": _KEYS,
        "ListKeyProviders": _SEE_KEYS,
        "GetKeyProvider": _SEE_KEYS,
        "CreateKeyProvider": _KEYS,
        "SetDefaultKeyProvider": _KEYS,
        "StartRewrap": _KEYS,
        "ListRewraps": _SEE_KEYS,
        "GetRewrap": _SEE_KEYS,
        "CancelRewrap": _KEYS,
        "ListKeyHolders": _SEE_KEYS,
        "GetReleasePolicy": _SEE_VMS,
        "SetReleasePolicy": _KEYS,
        "SetHostRegion": _HOSTS,
    },
    "VmService": {
        "ProtectVm": _KEYS,
        "ListVms": _SEE_VMS,
        "GetVm": _SEE_VMS,
        "WatchVms": _SEE_VMS,
        "ReprofileVm": _KEYS,
        "RetireVm": _KEYS,
    },
    "EscrowService": {
        "ExportEscrow": _KEYS,
        "ResealEscrow": _KEYS,
        "BeginDrill": _KEYS,
        "RecordDrill": _KEYS,
    },
    "BreakGlassService": {
        "OpenBreakGlass": _roles(Role.BREAK_GLASS),
        "ListBreakGlasses": _roles(Role.BREAK_GLASS, Role.KEYS, Role.AUDITOR, Role.OPERATOR),
        "CloseBreakGlass": _roles(Role.BREAK_GLASS, Role.KEYS, Role.HOSTS, Role.OPERATOR),
    },
    "PlacementService": {
        "CheckPlacement": _SEE_PLACEMENT,
        "ListCandidates": _SEE_PLACEMENT,
        "CreateIntent": _PLACEMENT,
        "ListIntents": _roles(Role.PLACEMENT, Role.AUDITOR),
        "OrderMove": _ORDER,
        "ListMoveOrders": _SEE_PLACEMENT,
        "ListOwnMoveOrders": _HOST,
        "CancelMoveOrder": _ORDER,
        "ReportMoveOrder": _HOST,
        "WatchPlacement": _SEE_PLACEMENT,
        "OfferMove": _HOST,
        "SwitchMove": _HOST,
        "AbortMove": _HOST,
        "GetMove": _HOST,
    },
    "StatusService": {"GetStatus": _READ},
    "ClusterService": {
        "CreateCluster": _POLICY,
        "ListClusters": _SEE_POLICY,
        "AddAnchor": _POLICY,
        "ListAnchors": _SEE_POLICY,
        "RemoveAnchor": _POLICY,
        "AddCrl": _POLICY,
        "ListCrls": _SEE_POLICY,
        "RemoveCrl": _POLICY,
        "AddInventory": _POLICY,
        "ListInventory": _SEE_POLICY,
        "RemoveInventory": _POLICY,
        "ApplyPolicy": _POLICY,
        "GetPolicy": _SEE_POLICY,
        "UploadRuntimeRules": _POLICY,
        "GetRuntimeRules": _SEE_POLICY,
        "CaptureBaseline": _POLICY,
        "PredictBaseline": _POLICY,
        "ApproveBaseline": _POLICY,
        "RetireBaseline": _POLICY,
        "ListBaselines": _SEE_POLICY,
        "DiffBaseline": _SEE_POLICY,
    },
    "HostService": {
        "ListHosts": _SEE_HOSTS,
        "GetHost": _SEE_HOSTS,
        "AdmitHost": _HOSTS,
        "RebindHost": _HOSTS,
        "RemoveHost": _HOSTS,
        "RevokeHost": _roles(Role.HOSTS, Role.OPERATOR),
        "ReinstateHost": _HOSTS,
        "DrainHost": _roles(Role.HOSTS, Role.OPERATOR),
        "UndrainHost": _roles(Role.HOSTS, Role.OPERATOR),
        "RevokeAll": _roles(Role.HOSTS, Role.OPERATOR),
        "GetEvidence": _roles(Role.HOSTS, Role.POLICY, Role.AUDITOR),
    },
    "ReportService": {"GetReport": _SEE_HOSTS, "GetReportKeys": _READ},
    "IdentityService": {
        "IssueIdentity": _IDENTITY,
        "RenewIdentity": _READ,
        "RevokeIdentity": _IDENTITY,
        "ListIdentities": _roles(Role.IDENTITY, Role.AUDITOR),
    },
    "AuditService": {
        "ListAudit": _AUDIT,
        "TailAudit": _AUDIT,
        "GetCheckpoint": _READ,
        "ProveAudit": _AUDIT,
    },
}
"""Service, method, rule. Reading is not free either: each row names who may."""

PACKAGE = "trustauthority.v1"
PUBLIC_PREFIXES = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
"""Standard services: answer on the mutual listener to whoever the handshake let in."""


def authorize(method: str, caller: Caller) -> None:
    """Refuse a call that the matrix does not allow.

    Raises:
        Unauthenticated: wrong listener, or the certificate's key is not registered (any more).
        RoleRequired: registered, but without a role of this call.
    """
    rule = rule_of(method)
    if rule is None:
        if method.startswith(PUBLIC_PREFIXES) and caller.listener is Listener.MUTUAL:
            return
        raise Unauthenticated("this call is not served on this listener")
    if rule.listener is not caller.listener:
        raise Unauthenticated(
            "this call is not served on this listener; see docs/reference/ports.md"
        )
    if rule.listener is Listener.ENROL:
        return
    if caller.host is not None:
        if rule.host and caller.host.admission is not Admission.REMOVED:
            return
        raise RoleRequired("a host may not make this call", role="host")
    if caller.identity is None or caller.identity.revoked:
        raise Unauthenticated("the certificate's key is not registered, or was revoked")
    if not caller.identity.roles & rule.roles:
        wanted = ", ".join(sorted(rule.roles)) or "host"
        raise RoleRequired(f"this call needs one of the roles: {wanted}", role=wanted)


def rule_of(method: str) -> Rule | None:
    """The row of a full method name, or None."""
    package, _, name = method.strip("/").rpartition(".")
    service, _, call = name.partition("/")
    return MATRIX.get(service, {}).get(call) if package == PACKAGE else None
