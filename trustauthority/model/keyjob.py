"""Key providers with the versions of their KEKs, and jobs that wrap many keys again."""

from dataclasses import dataclass
from enum import StrEnum

from trustauthority.model.vm import VmKeyEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class KekEntry:
    """One KEK of a provider. The highest version is the one that new keys are wrapped by."""

    provider: str
    version: int
    kek_id: str
    created_at_ms: int
    created_by: str


class JobState(StrEnum):
    """Where a job is. All but RUNNING are final."""

    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewrapJob:
    """All VM keys of a provider to one KEK, key by key; any process of the key role can go on."""

    job_id: str
    provider: str
    """Whose keys."""
    target: str
    """The provider that wraps them afterwards; the same one for a new KEK."""
    target_kek_id: str
    state: JobState = JobState.RUNNING
    total: int
    """Keys to be wrapped when the job began."""
    done: int = 0
    failed: int = 0
    """Keys that could not be wrapped in this pass; the next one tries them again."""
    after_vm: str = ""
    after_epoch: int = 0
    """The newest key that this pass looked at."""
    detail: str = ""
    """Why it waits, when it does."""
    worker: str = ""
    worker_until_ms: int = 0
    """Who works at it, and when somebody else may take over."""
    wait_until_ms: int = 0
    """The KMS is left alone until then."""
    created_at_ms: int
    created_by: str
    updated_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RewrapOrder:
    """What the key room needs to wrap one key again. Nothing in it is secret."""

    provider: str
    kek_id: str
    wrapped: bytes
    aad: bytes
    target: str
    target_kek_id: str
    target_aad: bytes


def is_wrapped_for(key: VmKeyEntry, job: RewrapJob) -> bool:
    """Whether nothing is left to do for a key."""
    return (key.provider, key.kek_id) == (job.target, job.target_kek_id)
