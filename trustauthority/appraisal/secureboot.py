"""Secure Boot from the verified events of one register (pitfalls 37, 38, 41, 42).

Trusts on entry: a ``VerifiedBootLog``, whose digests a quote proves; not its types, order of names, or
data. Guarantees on exit: ``enforced`` is True only when each rule below holds; whatever is doubtful is
a finding and makes it False. It compares with no baseline.

Source: TCG PC Client Platform Firmware Profile 1.06, section 3.3.4.8 (PCR 7); UEFI Specification 2.10,
section 32.3.
"""

import hashlib
from types import MappingProxyType

from trustauthority.codec.efi import count_signatures, decode_variable
from trustauthority.errors import MalformedEvidence
from trustauthority.model.bootfacts import (
    AuthorityUsed,
    BootFinding,
    KeyDatabase,
    SecureBootFacts,
    Severity,
)
from trustauthority.model.bootlog import BootEvent, EventType, RegisterKind
from trustauthority.model.efi import GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE, EfiVariable
from trustauthority.model.quirk import Quirk
from trustauthority.verification.banks import hash_constructor
from trustauthority.verification.meaning import Proof, prove
from trustauthority.verification.replay import VerifiedBootLog

POLICY_PCR = 7
_POLICY_RTMR = 1
_GUIDS = {
    "SecureBoot": GLOBAL_VARIABLE,
    "SetupMode": GLOBAL_VARIABLE,
    "AuditMode": GLOBAL_VARIABLE,
    "DeployedMode": GLOBAL_VARIABLE,
    "PK": GLOBAL_VARIABLE,
    "KEK": GLOBAL_VARIABLE,
    "db": IMAGE_SECURITY_DATABASE,
    "dbx": IMAGE_SECURITY_DATABASE,
    "dbt": IMAGE_SECURITY_DATABASE,
    "dbr": IMAGE_SECURITY_DATABASE,
}
_DATABASES = ("PK", "KEK", "db", "dbx", "dbt", "dbr")
_DEBUG = b"UEFI Debug Mode"
_NO_DMA_PROTECTION = b"DMA Protection Disabled"
_SHIM_STATE = "MokSBState"
"""shim's own switch: with the value 1 it starts what nobody signed, whatever Secure Boot says."""
_SHIM_SWITCHED_OFF = (
    bytes.fromhex("50ab5d6046e00043abb63dd810dd8b23")  # SHIM_LOCK_GUID
    + len(_SHIM_STATE).to_bytes(8, "little")
    + (1).to_bytes(8, "little")
    + _SHIM_STATE.encode("utf-16-le")
    + b"\1"
)
"""What shim then measures: known by its digest, so that no other type or text can hide it (rule 37)."""
_DEVICE_DATABASE = "devdb"
_LAST_ASCII = 0x7E


def policy_register(kind: RegisterKind) -> int:
    """The register that holds the Secure Boot policy: PCR 7, or RTMR 0 (index 1 of a CCEL)."""
    return POLICY_PCR if kind is RegisterKind.PCR else _POLICY_RTMR


class PolicyRegister:
    """A walk over the events of PCR 7, in order, that remembers what it saw and what is wrong."""

    def __init__(
        self, log: VerifiedBootLog, quirks: frozenset[Quirk], *, doubtful: bool = False
    ) -> None:
        """Walk ``log``; ``doubtful`` when something else in it already forbids any claim."""
        self._log = log
        self._quirks = quirks
        self._doubtful = doubtful
        self.pcr = policy_register(log.registers)
        self.variables: dict[str, EfiVariable] = {}
        self.authorities: list[AuthorityUsed] = []
        self.findings: list[BootFinding] = []
        self.actions: list[bytes] = []
        self.sbat_level: bytes | None = None
        self.shim_validation_disabled = False
        self._separated = False
        self._ambiguous: set[str] = set()

    def walk(self) -> SecureBootFacts:
        """The facts after the last event."""
        steps = {
            EventType.EFI_VARIABLE_DRIVER_CONFIG: self._configuration,
            EventType.EFI_VARIABLE_AUTHORITY: self._authority,
            EventType.SEPARATOR: self._separator,
            EventType.EFI_ACTION: self._action,
            EventType.ACTION: self._action,
            EventType.EFI_SPDM_DEVICE_POLICY: self._device,
            EventType.EFI_SPDM_DEVICE_AUTHORITY: self._device,
        }
        if self.pcr in self._log.verified_pcrs:
            switched_off = hash_constructor(self._log.bank)(_SHIM_SWITCHED_OFF).digest()
            for event in self._log.in_register(self.pcr):
                if self._log.digest(event) == switched_off:
                    self._shim_disabled(event)
                step = steps.get(event.type)  # type: ignore[call-overload]
                if step is not None:
                    step(event)
        return self._facts()

    def _find(self, name: str, severity: Severity, message: str, event: BootEvent | None) -> None:
        self.findings.append(
            BootFinding(
                id=name,
                severity=severity,
                message=message,
                pcr=self.pcr,
                event=-1 if event is None else event.number,
            )
        )

    def _doubt(self, name: str, message: str, event: BootEvent) -> None:
        """A finding that some genuine firmware may give, and after which Secure Boot is not claimed."""
        self._doubtful = True
        self._find(name, Severity.WARNING, message, event)

    def _proof(self, event: BootEvent) -> Proof:
        return prove(event, self._log.digest(event), self._log.bank, quirks=self._quirks)

    # (1) Configuration is measured before the separator, proven whole, and no variable twice.
    def _configuration(self, event: BootEvent) -> None:
        try:
            variable = decode_variable(event.data)
        except MalformedEvidence as error:
            self._find("variable-malformed", Severity.REFUSE, error.message, event)
            return
        name = variable.name
        known = _GUIDS.get(name) == variable.guid
        wrong: tuple[str, str] | None = None
        if self._proof(event) is not Proof.DATA:
            # A digest of the value alone would let the name be exchanged.
            wrong = "variable-unproven", f"the digest of {name} is not that of its data"
        elif self._separated:
            wrong = "variable-after-separator", f"{name} was measured after the separator"
        elif known and name in self.variables:
            wrong = "variable-twice", f"{name} was measured twice"
        if wrong is None:
            if known:
                self.variables[name] = variable
        elif known:
            self._ambiguous.add(name)
            self._find(wrong[0], Severity.REFUSE, wrong[1], event)
        else:
            # Firmware may measure settings of its own, from which nothing is claimed; but what another
            # type would say must not hide as one of them (rule 37).
            self._doubt(*wrong, event)

    # (2) One separator ends the configuration; a second one is reported with those of all registers.
    def _separator(self, _: BootEvent) -> None:
        self._separated = True

    # (3) What accepted drivers comes before the separator, what accepted boot loaders after it.
    def _authority(self, event: BootEvent) -> None:
        proof = self._proof(event)
        if proof is not Proof.DATA:
            self._find(
                "authority-unproven",
                Severity.WARNING,
                "the digest of an authority is not that of its data",
                event,
            )
            return
        try:
            variable = decode_variable(
                event.data, allow_trailing=Quirk.SHIM_TRAILING_BYTES in self._quirks
            )
        except MalformedEvidence as error:
            self._find("authority-malformed", Severity.WARNING, error.message, event)
            return
        if variable.name == "SbatLevel":
            self.sbat_level = variable.value
        if variable.name == _SHIM_STATE and variable.value not in {b"", b"\0"}:
            self._shim_disabled(event)
        self.authorities.append(
            AuthorityUsed(
                variable=variable.name,
                guid=variable.guid,
                sha256=hashlib.sha256(variable.value).hexdigest(),
                before_separator=not self._separated,
                event=event.number,
            )
        )

    def _shim_disabled(self, event: BootEvent) -> None:
        if not self.shim_validation_disabled:
            self._find(
                "shim-validation-disabled",
                Severity.WARNING,
                "shim was told not to check signatures (MokSBState)",
                event,
            )
        self.shim_validation_disabled = True

    # (4) Actions that weaken the platform are measured here.
    def _action(self, event: BootEvent) -> None:
        if self._proof(event) is not Proof.DATA:
            self._find(
                "action-unproven",
                Severity.REFUSE,
                "the digest of a firmware action is not that of its text",
                event,
            )
            return
        text = event.data.rstrip(b"\0")
        if not text or max(text) > _LAST_ASCII or min(text) < ord(" "):
            self._doubt("action-not-text", "a firmware action that is no text", event)
            return
        self.actions.append(text)

    # (5) Devices have one database of their own; anything else under these types is disguised.
    def _device(self, event: BootEvent) -> None:
        try:
            name = decode_variable(event.data, allow_trailing=True).name
        except MalformedEvidence as error:
            name = error.message
        if name != _DEVICE_DATABASE:
            self._doubt("device-variable-unknown", f"{name} is no database of devices", event)

    def _facts(self) -> SecureBootFacts:
        enabled = self._enabled()
        databases = {
            name: _database(name, self.variables[name].value)
            for name in _DATABASES
            if name in self.variables
        }
        used = any(
            not authority.before_separator and authority.variable in _DATABASES
            for authority in self.authorities
        )
        if enabled and not used:
            self._find(
                "authority-missing",
                Severity.WARNING,
                "Secure Boot is on, and no authority accepted the boot loader",
                None,
            )
        defects = self._doubtful or any(
            finding.severity is Severity.REFUSE for finding in self.findings
        )
        platform_key = databases.get("PK")
        setup = self._flag("SetupMode")
        if setup is None and platform_key is not None:
            setup = platform_key.size == 0
        audit = self._flag("AuditMode")
        return SecureBootFacts(
            enabled=enabled,
            enforced=bool(enabled)
            and used
            and self._separated
            and not defects
            and setup is False
            and not audit
            and not self.shim_validation_disabled,
            setup_mode=setup,
            audit_mode=audit,
            deployed_mode=self._flag("DeployedMode"),
            databases=MappingProxyType(databases),
            authorities=tuple(self.authorities),
        )

    def _enabled(self) -> bool | None:
        if self.pcr not in self._log.verified_pcrs:
            self._find("secure-boot-unverified", Severity.WARNING, "PCR 7 is not verified", None)
            return None
        variable = self.variables.get("SecureBoot")
        if variable is None:
            self._find("secure-boot-missing", Severity.WARNING, "SecureBoot was not measured", None)
            return None
        if len(variable.value) != 1 or variable.value[0] > 1:
            kind = "empty" if not variable.value else "not one byte of 0 or 1"
            self._find("secure-boot-invalid", Severity.WARNING, f"SecureBoot is {kind}", None)
            return None
        return None if "SecureBoot" in self._ambiguous else variable.value == b"\x01"

    def _flag(self, name: str) -> bool | None:
        variable = self.variables.get(name)
        if variable is None or name in self._ambiguous or len(variable.value) != 1:
            return None
        return variable.value == b"\x01"

    @property
    def uefi_debug(self) -> bool:
        """Whether firmware says that it runs in debug mode."""
        return _DEBUG in self.actions

    @property
    def dma_protection_disabled(self) -> bool:
        """Whether firmware says that devices may write to all memory."""
        return _NO_DMA_PROTECTION in self.actions


def _database(name: str, value: bytes) -> KeyDatabase:
    try:
        entries = count_signatures(value)
    except MalformedEvidence:
        entries = -1
    return KeyDatabase(
        name=name,
        sha256=hashlib.sha256(value).hexdigest() if value else "",
        size=len(value),
        entries=entries,
    )
