"""Tables of what VM keys rest on: KEKs, defaults of clusters, rewrap jobs, release policies."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, LargeBinary, String, Table, Text

from trustauthority.adapters.sql.tables import metadata
from trustauthority.placement.release_policy import COMPONENTS

kek = Table(
    "key_provider_kek",
    metadata,
    Column("provider", String(63), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("kek_id", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", String(128), nullable=False),
)
"""Every KEK of every provider; the highest version is the current one."""

default_provider = Table(
    "cluster_key_provider",
    metadata,
    Column("cluster_id", ForeignKey("cluster.cluster_id"), primary_key=True),
    Column("provider", String(63), nullable=False),
)

rewrap_job = Table(
    "rewrap_job",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("provider", String(63), nullable=False),
    Column("target", String(63), nullable=False),
    Column("target_kek_id", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("after_vm", String(63), nullable=False),
    Column("after_epoch", BigInteger, nullable=False),
    Column("detail", Text, nullable=False),
    Column("worker", String(64), nullable=False),
    Column("worker_until_ms", BigInteger, nullable=False),
    Column("wait_until_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
)
Index("rewrap_job_by_state", rewrap_job.c.state)

release_policy = Table(
    "vm_release_policy",
    metadata,
    Column("vm_id", ForeignKey("vm.vm_id"), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("clusters", Text, nullable=False),
    Column("host_classes", Text, nullable=False),
    Column("regions", Text, nullable=False),
    Column("hours", Text, nullable=False),
    Column("max_evidence_age_ms", BigInteger, nullable=False),
    *(Column(f"variants_{each}", Text, nullable=False) for each in COMPONENTS),
    Column("document", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("set_at_ms", BigInteger, nullable=False),
    Column("set_by", String(128), nullable=False),
)
"""The newest release policy of a VM: what its document says, once more as columns for decisions."""
