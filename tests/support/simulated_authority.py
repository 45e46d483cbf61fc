"""One authority in one process: every service over a real SQLite file, a clock that tests move.

What is not real is named so: the clock and the key room. Hosts are ``SimulatedHost``s.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from fakes.clock import FakeClock
from fakes.keyroom import FakeKeyRoom, make_key_room
from joserfc.jwk import ECKey, KeySet
from sqlalchemy import text

from support import ek_certificates
from support.simulated_host import GOOD, SimulatedHost, SimulatedTpm
from support.stores import SqliteStores
from trustauthority.adapters.sql.store import SqlStore
from trustauthority.adapters.tombstones import FileTombstones
from trustauthority.model.catalogue import AnchorKind
from trustauthority.model.escrow import EscrowKey
from trustauthority.model.host import HostRecord
from trustauthority.model.placement import LeaseClass, Sharing
from trustauthority.services.attestation import AttestationService, Attested, Invitation
from trustauthority.services.audit import AuditService
from trustauthority.services.baselines import BaselineService, VariantName
from trustauthority.services.break_glass import BreakGlassService
from trustauthority.services.catalogue import CatalogueService
from trustauthority.services.certificates import new_authority
from trustauthority.services.destruction import Destruction
from trustauthority.services.enrolment import ActivatedHost, EnrolmentService
from trustauthority.services.escrow import EscrowService
from trustauthority.services.holders import HolderService
from trustauthority.services.hosts import HostService
from trustauthority.services.keyadmin import KeyAdministration
from trustauthority.services.keyproviders import KeyProviderService
from trustauthority.services.keyroll import KeyRollService
from trustauthority.services.keys import KeyService, ReleasedKey
from trustauthority.services.placement import NewVm, PlacementService
from trustauthority.services.releasepolicies import ReleasePolicyService
from trustauthority.services.rewrap import RewrapService
from trustauthority.services.secrets import AuthoritySecrets

BY = "identity:root"
CLUSTER = "prod"
VM = "payroll"
HOUR_MS = 3_600_000
HOST_CA = new_authority("Test host CA", now_ms=1_690_000_000_000, ttl_ms=10_000 * HOUR_MS)
REPORT_KEY = ECKey.generate_key("P-256", auto_kid=True)
AUDIT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CHALLENGE_KEYS = {1: b"1" * 32, 2: b"2" * 32}
CA_SHA256 = hashlib.sha256(HOST_CA.certificate.public_bytes(Encoding.DER)).digest()


class RecordingJournal:
    """The Journal port: keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def record(self, event: str, **facts: str | float | bool) -> None:
        """Keep an event."""
        self.events.append((event, facts))

    def crash(self, error_id: str, where: str, error: BaseException) -> None:
        """Keep a crash."""
        self.events.append(("crash", {"id": error_id, "where": where, "error": repr(error)}))


class SimulatedAuthority:
    """Services, their store, and what tests do with them again and again."""

    def __init__(self, stores: SqliteStores, store: SqlStore, room: FakeKeyRoom) -> None:
        self.stores, self.store, self.room = stores, store, room
        self.clock: FakeClock = stores.clock
        self.journal = RecordingJournal()
        self.secrets = AuthoritySecrets(
            origin="authority.test/audit",
            authority_ca_sha256=CA_SHA256,
            audit_key=AUDIT_KEY,
            challenge_keys=CHALLENGE_KEYS,
            host_ca=HOST_CA,
            report_key=REPORT_KEY,
            release_public=room.release_key.public_key(),
        )
        self.verdict_keys = KeySet([REPORT_KEY])
        self.attestation = AttestationService(store, self.secrets, self.journal, "node-1")
        self.enrolment = EnrolmentService(store, self.secrets)
        self.keys = KeyService(store, room, self.verdict_keys, self.journal)
        self.key_providers = KeyProviderService(store, room)
        self.key_admin = KeyAdministration(store, room, self.key_providers)
        self.rewrap = RewrapService(store, room, self.key_providers, self.journal)
        self.tombstones = FileTombstones(stores.path.parent / "tombstones", AUDIT_KEY)
        self.destruction = Destruction(store, self.tombstones)
        self.release_policies = ReleasePolicyService(store)
        self.key_roll = KeyRollService(store, room, self.key_providers)
        self.holders = HolderService(store)
        self.escrow = EscrowService(
            store,
            room,
            origin=self.secrets.origin,
            key_id="" if room.escrow_key is None else room.escrow_key.key_id.hex(),
        )
        self.break_glass = BreakGlassService(store)
        self.placement = PlacementService(store)
        self.hosts = HostService(store)
        self.catalogue = CatalogueService(store)
        self.baselines = BaselineService(store)
        self.audit = AuditService(store, self.secrets, self.journal)

    @classmethod
    async def start(cls, folder: Path, escrow_key: EscrowKey | None = None) -> "SimulatedAuthority":
        """An authority with one cluster, which accepts the test vendor's TPMs."""
        stores = SqliteStores(folder)
        room = make_key_room()
        room.escrow_key = escrow_key
        authority = cls(stores, await stores.open(), room)
        await authority.add_cluster(CLUSTER)
        return authority

    async def another_node(self) -> "SimulatedAuthority":
        """Another process on the same database and the same KMS."""
        return SimulatedAuthority(self.stores, await self.stores.open(), self.room)

    async def add_cluster(self, name: str) -> None:
        """A cluster with the default policy and the vendor's root as anchor."""
        await self.catalogue.create_cluster(name, by=BY)
        await self.catalogue.add_anchor(
            cluster=name,
            kind=AnchorKind.CA,
            certificate=ek_certificates.root(),
            ek_sha256=b"",
            ek_type="ecc",
            by=BY,
            dry_run=False,
        )

    async def apply_policy(self, document: str, cluster: str = CLUSTER) -> None:
        """Put a policy in force."""
        await self.catalogue.apply_policy(cluster, document, by=BY, dry_run=False)

    def pass_ms(self, length: int, *hosts: SimulatedHost) -> None:
        """Time passes here and in the TPMs of hosts."""
        self.clock.pass_ms(length)
        for host in hosts:
            host.pass_ms(length)

    # --- hosts ---------------------------------------------------------------------------------

    def host(self, name: str, **fields: Any) -> SimulatedHost:
        """A host that knows this authority's CA; nothing else happened yet."""
        return SimulatedHost(name, authority_ca_sha256=CA_SHA256, **fields)

    async def list_machine(
        self, host: SimulatedHost, *, name: str = "", host_class: str = ""
    ) -> None:
        """Put a host's TPM into the inventory."""
        ek_sha256 = hashlib.sha256(host.tpm.ek_public).hexdigest()
        machine = (host.cluster, ek_sha256, name, host_class)
        await self.catalogue.add_inventory([machine], by=BY, dry_run=False)

    async def enrol(self, host: SimulatedHost) -> ActivatedHost:
        """Run the calls of an enrolment."""
        challenge, _ = await self.enrolment.challenge(
            cluster=host.cluster, ek_public=host.tpm.ek_public
        )
        pending = await self.enrolment.enrol(host.claim(challenge), peer=host.name)
        activated = await self.enrolment.activate(pending.pending_id, host.proof(pending))
        host.host_id = activated.host.host_id
        return activated

    async def record(self, host: SimulatedHost) -> HostRecord:
        """The host's row."""
        async with self.store.snapshot() as tx:
            found = await tx.hosts.get(host.host_id)
        assert found is not None
        return found

    async def invite(self, host: SimulatedHost) -> Invitation:
        """A challenge for a host."""
        return await self.attestation.invite(await self.record(host))

    async def attest(self, host: SimulatedHost) -> Attested:
        """One attestation round."""
        invitation = await self.invite(host)
        return await self.attestation.attest(await self.record(host), host.evidence(invitation))

    async def enrolled(self, name: str, **fields: Any) -> SimulatedHost:
        """A host of ours, enrolled by inventory."""
        host = self.host(name, **fields)
        await self.list_machine(host)
        await self.enrol(host)
        return host

    async def approve_baseline(self, host: SimulatedHost, name: str = "golden") -> None:
        """Make a host's newest boot the approved one."""
        wanted = VariantName(cluster=CLUSTER, name=name)
        proposed = await self.baselines.capture(wanted, host.host_id, by=BY)
        await self.baselines.approve(wanted, sha256=proposed.sha256, by=BY, dry_run=False)

    async def trusted(self, *names: str) -> list[SimulatedHost]:
        """Hosts of ours, whose boot is approved, and whose newest verdict is PASSED."""
        hosts = [await self.enrolled(name) for name in names]
        await self.attest(hosts[0])
        await self.approve_baseline(hosts[0])
        for host in hosts:
            assert (await self.attest(host)).verdict.passed
        return hosts

    async def standing(self, host: SimulatedHost) -> str:
        """Its standing now."""
        view, _ = await self.hosts.get(host.host_id)
        return str(view.standing)

    # --- VMs -----------------------------------------------------------------------------------

    async def add_vm(
        self,
        vm: str = VM,
        *,
        any_host: bool = False,
        lease_class: LeaseClass = LeaseClass.STRICT,
        cluster: str = CLUSTER,
        sharing: Sharing = Sharing.EXCLUSIVE,
    ) -> None:
        """Protect a VM and make its key."""
        await self.placement.protect(
            NewVm(
                vm_id=vm,
                cluster=cluster,
                lease_class=lease_class,
                any_host=any_host,
                profile_sha256=b"",
                sharing=sharing,
            ),
            by=BY,
        )
        await self.key_admin.create(vm, provider="", by=BY)

    async def intend(self, host: SimulatedHost, vm: str = VM) -> None:
        """Give a host a reason to ask for a VM."""
        await self.placement.create_intent(vm, host.host_id, ttl_ms=0, by="identity:nova")

    async def request(
        self,
        host: SimulatedHost,
        vm: str = VM,
        *,
        request_id: str = "",
        move_id: str = "",
        shared: bool = False,
    ) -> ReleasedKey:
        """The host asks for a VM's key, or for a shared secret."""
        return await self.keys.request(
            await self.record(host),
            vm=vm,
            request_id=request_id or os.urandom(12).hex(),
            move_id=move_id,
            shared=shared,
        )

    def vm_key(self, vm: str = VM) -> bytes:
        """What the key of a VM really is: the fake key room tells."""
        return next(key for aad, key in self.room.vm_keys.items() if json.loads(aad)["vm"] == vm)

    def open(self, host: SimulatedHost, released: ReleasedKey, vm: str = VM, **how: Any) -> bytes:
        """The host opens what it got."""
        release_key: ec.EllipticCurvePublicKey = self.room.release_key.public_key()
        return host.open(released, vm=vm, release_key=release_key, **how)

    # --- the audit log -------------------------------------------------------------------------

    async def log(self, operation: str = "") -> list[dict[str, Any]]:
        """Audit entries, oldest first, of one operation or all."""
        async with self.store.snapshot() as tx:
            entries = [
                json.loads(each.content) for each in await tx.audit.entries(start=0, limit=10_000)
            ]
        return [each for each in entries if not operation or each["operation"] == operation]

    async def last(self, operation: str) -> dict[str, Any]:
        """The newest audit entry of an operation."""
        return (await self.log(operation))[-1]

    # --- the administrator of the database ------------------------------------------------------

    async def write_sql(self, statement: str, **values: Any) -> None:
        """Write into the database behind the authority's back."""
        async with self.store._engine.connect() as connection:
            await connection.begin()
            done = await connection.execute(text(statement), values)
            assert done.rowcount >= 1
            await connection.commit()

    async def write_ddl(self, statement: str) -> None:
        """Change the tables behind the authority's back."""
        async with self.store._engine.connect() as connection:
            await connection.begin()
            await connection.execute(text(statement))
            await connection.commit()

    async def close(self) -> None:
        """Close every store on this database."""
        await self.stores.close()


__all__ = ["BY", "CA_SHA256", "CLUSTER", "GOOD", "VM", "SimulatedAuthority", "SimulatedTpm"]
