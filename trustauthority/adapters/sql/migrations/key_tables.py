"""Tables of VM keys, their KEKs, and jobs that wrap keys again: part of the first migration."""

import sqlalchemy as sa
from alembic import op


def create() -> None:
    """Make them."""
    op.create_table(
        "vm_key",
        sa.Column("vm_id", sa.String(length=63), nullable=False),
        sa.Column("key_epoch", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("provider", sa.String(length=63), nullable=False),
        sa.Column("kek_id", sa.Text(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("escrowed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("destroy_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vm_id"],
            ["vm.vm_id"],
        ),
        sa.PrimaryKeyConstraint("vm_id", "key_epoch"),
    )
    op.create_index(
        "vm_key_by_provider", "vm_key", ["provider", "vm_id", "key_epoch"], unique=False
    )
    op.create_index("vm_key_to_destroy", "vm_key", ["destroy_at_ms"], unique=False)
    op.create_table(
        "key_provider_kek",
        sa.Column("provider", sa.String(length=63), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("kek_id", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("provider", "version"),
    )
    op.create_table(
        "cluster_key_provider",
        sa.Column("cluster_id", sa.String(length=63), nullable=False),
        sa.Column("provider", sa.String(length=63), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.cluster_id"]),
        sa.PrimaryKeyConstraint("cluster_id"),
    )
    op.create_table(
        "rewrap_job",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("provider", sa.String(length=63), nullable=False),
        sa.Column("target", sa.String(length=63), nullable=False),
        sa.Column("target_kek_id", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("after_vm", sa.String(length=63), nullable=False),
        sa.Column("after_epoch", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("worker_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("wait_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("rewrap_job_by_state", "rewrap_job", ["state"], unique=False)
    op.create_table(
        "vm_release_policy",
        sa.Column("vm_id", sa.String(length=63), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("clusters", sa.Text(), nullable=False),
        sa.Column("host_classes", sa.Text(), nullable=False),
        sa.Column("regions", sa.Text(), nullable=False),
        sa.Column("hours", sa.Text(), nullable=False),
        sa.Column("max_evidence_age_ms", sa.BigInteger(), nullable=False),
        sa.Column("variants_firmware", sa.Text(), nullable=False),
        sa.Column("variants_secure_boot", sa.Text(), nullable=False),
        sa.Column("variants_boot_loader", sa.Text(), nullable=False),
        sa.Column("variants_kernel", sa.Text(), nullable=False),
        sa.Column("variants_command_line", sa.Text(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("set_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("set_by", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.vm_id"]),
        sa.PrimaryKeyConstraint("vm_id"),
    )
