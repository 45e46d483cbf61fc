"""This host, brought up: TPM, keys, identity, and links made from them.

Stage: assembly of the agent. Trusts its settings. Guarantees that one process at a time uses the
state of an agent, that links always carry the pinned CA and a key that stays in the TPM, and that a
re-enrolment follows only the authority that was pinned. Decides nothing about time.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from hostagent.channel import AuthorityLink, EnrolmentLink, Pinned
from hostagent.checkpoint import CheckpointMemory
from hostagent.collect import LogPaths
from hostagent.enrol import EnrolAs, StepSeen, accept_identity, enrol
from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.identity import Identity, load_identity, store_identity
from hostagent.keys import HostKeys, open_keys
from hostagent.ports import TpmPort
from hostagent.settings import ConfigurationInvalid, Settings, pinned_ca
from hostagent.spent import Spent
from hostagent.tpm import EndorsementAlgorithm, HostTpm, StorageAlgorithm


class AgentRuns(Exception):
    """Another agent or command uses this host's state now."""


@dataclass(slots=True, kw_only=True)
class Host:
    """What commands and daemon share. ``identity`` is None before the first enrolment."""

    settings: Settings
    tpm: TpmPort
    keys: HostKeys
    ca_pem: bytes
    ca: x509.Certificate
    identity: Identity | None
    spent: Spent = field(default_factory=Spent)
    """What the time of this process went into."""

    @property
    def pinned(self) -> Pinned:
        """How the authority is recognised."""
        return Pinned(ca_pem=self.ca_pem, server_name=self.settings.authority.server_name)

    @property
    def logs(self) -> LogPaths:
        """Where the kernel's logs are."""
        paths = self.settings.paths
        return LogPaths(boot=paths.boot_log, ima=paths.ima_log, userspace=paths.userspace_log)

    def certificate_left_ms(self) -> int | None:
        """Until the certificate ends, by the wall clock; None without one."""
        return None if self.identity is None else self.identity.certificate_left_ms(time.time())

    def enrolled(self) -> Identity:
        """The identity. Raises CallFailed when there is none yet."""
        if self.identity is None or not self.identity.certificate_chain:
            raise CallFailed(
                Failure(
                    kind=FailureKind.REFUSED,
                    reason="NOT_ENROLLED",
                    detail="this host has no certificate: run hostagent enrol",
                    exit_code=1,
                )
            )
        return self.identity

    def checkpoints(self) -> CheckpointMemory:
        """The kept checkpoint of the pinned audit log. Raises CallFailed when not enrolled."""
        identity = self.enrolled()
        return CheckpointMemory(
            self.settings.paths.state_dir,
            origin=identity.audit_origin,
            public_key=identity.audit_public_key,
        )

    def link(self, checkpoints: CheckpointMemory) -> AuthorityLink:
        """Connections with the present certificate. Raises CallFailed when there is none."""
        authority = self.settings.authority
        return AuthorityLink(
            mtls=authority.mtls,
            key=authority.key_address,
            placement=authority.placement_address,
            pinned=self.pinned,
            certificate_chain=self.enrolled().certificate_chain,
            sign=lambda digest: self.tpm.sign_digest(self.keys.identity, digest),
            checkpoints=checkpoints,
        )

    async def enrol(
        self,
        seen: StepSeen,
        *,
        name: str | None = None,
        cluster: str | None = None,
        accept_new_authority: bool = False,
    ) -> Identity:
        """Enrol, check against what was pinned, store. Raises CallFailed, OSError."""
        # what an operator said now, else what is enrolled, else what is configured
        kept = self.identity
        wanted = EnrolAs(
            cluster=cluster or (kept.cluster if kept else self.settings.host.cluster),
            name=name or (kept.name if kept else self.settings.host.name),
            ca=self.ca,
            timeout_ms=self.settings.intervals.call_timeout_ms,
        )
        link = EnrolmentLink(self.settings.authority.enrol, self.pinned)
        try:
            answered = await enrol(link, self.tpm, self.keys, wanted, seen)
        finally:
            await link.close()
        before = None if accept_new_authority else self.identity
        self.store(accept_identity(before, answered))
        return answered

    def store(self, identity: Identity) -> None:
        """Keep an identity. Raises OSError."""
        store_identity(self.settings.paths.state_dir, identity)
        self.identity = identity


@contextmanager
def only_agent(run_dir: Path) -> Iterator[None]:
    """Hold the lock of this host's agent. Raises AgentRuns."""
    descriptor = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as failure:
            raise AgentRuns(f"another agent uses {run_dir}") from failure
        yield
    finally:
        os.close(descriptor)


@contextmanager
def open_host(settings: Settings) -> Iterator[Host]:
    """Bring up TPM and keys; deriving an RSA EK may take a minute on a real TPM.

    Raises TpmError, TpmChanged, KeyStateInvalid, BrokenState, InsecureFile, ConfigurationInvalid.
    """
    ca_pem, ca = pinned_ca(settings.authority.ca_file)
    spent = Spent()
    with HostTpm(settings.tpm.tcti, spent) as tpm:
        keys = open_keys(
            tpm,
            settings.paths.state_dir,
            endorsement=_endorsement(settings, tpm),
            storage=StorageAlgorithm(settings.tpm.storage),
        )
        yield Host(
            settings=settings,
            tpm=tpm,
            keys=keys,
            ca_pem=ca_pem,
            ca=ca,
            identity=load_identity(settings.paths.state_dir),
            spent=spent,
        )


def _endorsement(settings: Settings, tpm: HostTpm) -> EndorsementAlgorithm:
    wanted = settings.tpm.endorsement
    if wanted is None:
        return next(iter(tpm.endorsements()), EndorsementAlgorithm.RSA2048)
    try:
        return EndorsementAlgorithm(wanted)
    except ValueError as failure:
        known = ", ".join(EndorsementAlgorithm)
        raise ConfigurationInvalid(f"tpm.endorsement: {wanted}: one of {known}") from failure
