"""Between protobuf messages and the model: providers and jobs of keys."""

from trustauthority.errors import InvalidRequest
from trustauthority.model.baseline import Component
from trustauthority.model.keyjob import JobState, RewrapJob
from trustauthority.model.kms import HealthState
from trustauthority.rpc.convert import optional_name, timestamp
from trustauthority.services.holders import HeldKey
from trustauthority.services.keyproviders import ProviderView
from trustauthority.services.releasepolicies import ReleasePolicyView
from trustauthority.v1 import admin_pb2
from trustauthority.v1 import keyadmin_pb2 as pb

HEALTH = {
    HealthState.OK: admin_pb2.HEALTH_OK,
    HealthState.WARNING: admin_pb2.HEALTH_WARNING,
    HealthState.ERROR: admin_pb2.HEALTH_ERROR,
}
_JOB_STATES = {
    JobState.RUNNING: pb.REWRAP_STATE_RUNNING,
    JobState.DONE: pb.REWRAP_STATE_DONE,
    JobState.CANCELLED: pb.REWRAP_STATE_CANCELLED,
}


def provider(view: ProviderView) -> pb.KeyProvider:
    """A key provider."""
    health = view.health
    return pb.KeyProvider(
        name=view.name,
        kind="" if health.kind is None else str(health.kind),
        health=HEALTH[health.state],
        detail=health.detail,
        versions=[
            pb.KekVersion(
                version=each.version,
                kek_id=each.kek_id,
                keys=view.keys_by_kek.get(each.kek_id, 0),
                created_at=timestamp(each.created_at_ms),
                created_by=each.created_by,
            )
            for each in view.versions
        ],
        clusters=view.clusters,
        trusts_server=health.trusts_server,
        trusted_by_server=health.trusted_by_server,
        credential_expires_at=timestamp(health.credential_expires_ms),
    )


def rewrap(job: RewrapJob) -> pb.Rewrap:
    """A rewrap job."""
    return pb.Rewrap(
        job_id=job.job_id,
        provider=job.provider,
        target=job.target,
        target_kek_id=job.target_kek_id,
        state=_JOB_STATES[job.state],
        total=job.total,
        done=job.done,
        failed=job.failed,
        detail=job.detail,
        created_at=timestamp(job.created_at_ms),
        created_by=job.created_by,
        updated_at=timestamp(job.updated_at_ms),
    )


def place(token: str) -> int:
    """A place in the log, as a page token says it; the beginning without one."""
    if not token:
        return -1
    if not (token.isascii() and token.isdigit() and len(token) < 18):
        raise InvalidRequest("page_token is not one of this list", field="page_token")
    return int(token)


def variant(text: str) -> str:
    """A baseline as people ask about it: nothing, a name, or ``component=name``."""
    component, equals, name = text.rpartition("=")
    if equals and component not in set(Component):
        raise InvalidRequest("baseline: a name, or component=name", field="baseline")
    optional_name(name, "baseline")
    return text


def held_key(held: HeldKey) -> pb.HeldKey:
    """A release and its end."""
    return pb.HeldKey(
        vm_id=held.vm_id,
        key_epoch=held.key_epoch,
        current_key_epoch=held.current_key_epoch,
        host_id=held.host_id,
        host_name=held.host_name,
        grant_epoch=held.grant_epoch,
        purpose=held.purpose,
        tpm=held.tpm,
        baseline=held.baseline,
        verdict_id=held.verdict_id,
        released_at=timestamp(held.released_at_ms),
        ended_at=timestamp(held.ended_at_ms),
    )


def release_policy(view: ReleasePolicyView) -> pb.ReleasePolicy:
    """A release policy."""
    made = pb.ReleasePolicy(lines=view.lines)
    if view.entry is not None:
        made.version = view.entry.record.version
        made.document = view.entry.document
        made.signature = view.entry.signature
        made.set_at.FromMilliseconds(view.entry.set_at_ms)
        made.set_by = view.entry.set_by
    return made
