"""Between protobuf messages and the model: providers and jobs of keys."""

from trustauthority.model.keyjob import JobState, RewrapJob
from trustauthority.model.kms import HealthState
from trustauthority.rpc.convert import timestamp
from trustauthority.services.keyproviders import ProviderView
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
