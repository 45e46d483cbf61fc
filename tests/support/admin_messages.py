"""Messages of a small fleet, as an authority would send them."""

from datetime import UTC, datetime

from trustauthority.v1 import admin_pb2 as admin
from trustauthority.v1 import attestation_pb2 as attestation
from trustauthority.v1 import common_pb2 as common

PASSED, FAILED, UNKNOWN = (
    common.STANDING_PASSED,
    common.STANDING_FAILED,
    common.STANDING_UNKNOWN,
)


def at(text: str) -> datetime:
    """A time of the day on which the tests' clock stands."""
    return datetime.fromisoformat(f"2026-11-20T{text}").replace(tzinfo=UTC)


def host(name: str, standing: common.Standing = PASSED, **fields: object) -> admin.Host:
    """A host of cluster prod."""
    record = admin.Host(
        host_id=f"h-{name}",
        name=name,
        cluster="prod",
        admission=attestation.ADMISSION_ADMITTED,
        standing=standing,
        baseline="r640-2.19",
        ek_sha256="5f" * 32,
        tpm="IFX SLB9670 7.85",
        approval_sha256="a9" * 32,
        trust_epoch=1,
        vms=2,
    )
    record.standing_since.FromDatetime(at("08:00:00"))
    record.enrolled_at.FromDatetime(datetime(2026, 8, 1, 9, tzinfo=UTC))
    if standing != UNKNOWN:
        record.attested_until.FromDatetime(at("19:30:00"))
    record.MergeFrom(admin.Host(**fields))  # type: ignore[arg-type]
    return record


def fleet() -> list[admin.Host]:
    """Five hosts, one of each kind of trouble."""
    failed = host("esx-a03", FAILED, reason="boot.secure-boot: dbx changed", vms=12)
    failed.ClearField("attested_until")
    failed.standing_since.FromDatetime(at("13:58:02"))
    silent = host("esx-a04", UNKNOWN, reason="no evidence since 2026-11-18 09:13Z")
    waiting = host("esx-a05", PASSED)
    waiting.admission = attestation.ADMISSION_WAITING
    revoked = host("esx-a06", PASSED, revoked=True)
    return [host("esx-a01"), failed, silent, waiting, revoked]


def verdict(standing: common.Standing = FAILED) -> common.Verdict:
    """The verdict on a host whose forbidden signatures changed."""
    good = common.CHECK_STATE_PASSED
    bad = common.CHECK_STATE_FAILED if standing == FAILED else good
    result = common.Verdict(
        verdict_id="v1",
        host_id="h-esx-a03",
        standing=standing,
        policy="prod-hosts",
        policy_epoch=7,
        baseline="r640-2.19",
        checks=[
            common.Check(id="endorsement", state=good, title="EK chains to Infineon Root CA 2"),
            common.Check(id="quote", state=good, title="signature, challenge, digest, counters"),
            common.Check(
                id="boot",
                state=bad,
                title="1 of 14 components differs from baseline r640-2.19",
                pcr=-1,
                event_index=-1,
                children=[
                    common.Check(id="boot.kernel", state=good, title="vmlinuz 6.12.9-2"),
                    common.Check(
                        id="boot.secure-boot.dbx",
                        state=bad,
                        title="forbidden signatures",
                        expected="dbx 2025-05 c2b1…",
                        found="dbx 2026-10 77e0…",
                        detail="3 revocations more, none less",
                        remedy="was a firmware update expected? Then capture a new baseline",
                        pcr=7,
                        event_index=31,
                    ),
                ],
            ),
            common.Check(
                id="runtime", state=common.CHECK_STATE_SKIPPED, title="the policy does not ask"
            ),
            common.Check(
                id="clock",
                state=common.CHECK_STATE_WARNING,
                title="the TPM clock was not safe",
                detail="the machine lost power",
                pcr=-1,
                event_index=-1,
            ),
        ],
    )
    result.decided_at.FromDatetime(at("13:58:02"))
    return result
