"""The first tables.

What ``adapters.sql.tables`` said when they were made; a test compares the two. The one row of the
authority begins here, with a clock guard that has seen nothing.
"""

import sqlalchemy as sa
from alembic import op

from trustauthority.adapters.sql.migrations import key_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    _policy()
    _hosts()
    _vms()
    _placement()
    _authority()


def _policy() -> None:
    """What administrators keep."""
    op.create_table(
        "cluster",
        sa.Column("cluster_id", sa.String(length=63), nullable=False),
        sa.Column("may_hold_keys", sa.Boolean(), nullable=False),
        sa.Column("live_grants_cap", sa.BigInteger(), nullable=False),
        sa.Column("new_grants_cap", sa.BigInteger(), nullable=False),
        sa.Column("offer_ms", sa.BigInteger(), nullable=False),
        sa.Column("prepare_for_ms", sa.BigInteger(), nullable=False),
        sa.Column("warned_hosts_take", sa.Boolean(), nullable=False),
        sa.Column("policy_document", sa.Text(), nullable=False),
        sa.Column("policy_sha256", sa.String(length=64), nullable=False),
        sa.Column("policy_epoch", sa.BigInteger(), nullable=False),
        sa.Column("applied_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("applied_by", sa.String(length=128), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id"),
    )
    op.create_table(
        "anchor",
        sa.Column("cluster_id", sa.String(length=63), nullable=False),
        sa.Column("anchor_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("ek_type", sa.String(length=8), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("added_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("added_by", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.cluster_id"]),
        sa.PrimaryKeyConstraint("cluster_id", "anchor_id"),
    )
    op.create_table(
        "inventory",
        sa.Column("cluster_id", sa.String(length=63), nullable=False),
        sa.Column("ek_sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("host_class", sa.String(length=63), nullable=False),
        sa.Column("added_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("added_by", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.cluster_id"]),
        sa.PrimaryKeyConstraint("cluster_id", "ek_sha256"),
    )
    op.create_table(
        "baseline",
        sa.Column("cluster_id", sa.String(length=63), nullable=False),
        sa.Column("component", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("host_class", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("captured_from", sa.Text(), nullable=False),
        sa.Column("captured_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("approved_by", sa.String(length=128), nullable=False),
        sa.Column("last_matched_at_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.cluster_id"]),
        sa.PrimaryKeyConstraint("cluster_id", "component", "name"),
    )
    op.create_table(
        "identity",
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.Column("certificate_expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("issued_by", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("key_sha256"),
        sa.UniqueConstraint("name", name="identity_name_unique"),
    )


def _hosts() -> None:
    """Enrolled TPMs and their verdicts."""
    op.create_table(
        "pending_enrolment",
        sa.Column("pending_id", sa.String(length=64), nullable=False),
        sa.Column("row_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("peer", sa.String(length=64), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pending_id"),
    )
    op.create_table(
        "host",
        sa.Column("host_id", sa.String(length=34), nullable=False),
        sa.Column("cluster_id", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("reserved_name", sa.String(length=63), nullable=True),
        sa.Column("ek_sha256", sa.String(length=64), nullable=False),
        sa.Column("ek_public", sa.LargeBinary(), nullable=False),
        sa.Column("ek_certificate", sa.LargeBinary(), nullable=False),
        sa.Column("ak_public", sa.LargeBinary(), nullable=False),
        sa.Column("tls_public", sa.LargeBinary(), nullable=False),
        sa.Column("storage_public", sa.LargeBinary(), nullable=False),
        sa.Column("storage_qualified_name", sa.LargeBinary(), nullable=False),
        sa.Column("tls_spki_sha256", sa.String(length=64), nullable=False),
        sa.Column("approval_sha256", sa.String(length=64), nullable=False),
        sa.Column("anchor", sa.Text(), nullable=False),
        sa.Column("tpm", sa.Text(), nullable=False),
        sa.Column("tpm_manufacturer", sa.Text(), nullable=False),
        sa.Column("ek_chain", sa.LargeBinary(), nullable=False),
        sa.Column("enrolled_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("admission", sa.String(length=16), nullable=False),
        sa.Column("admitted", sa.Boolean(), nullable=False),
        sa.Column("host_class", sa.String(length=63), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=False),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.Column("trust_epoch", sa.BigInteger(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("verdict_id", sa.String(length=64), nullable=True),
        sa.Column("passed", sa.Boolean(), nullable=True),
        sa.Column("warned", sa.Boolean(), nullable=False),
        sa.Column("decided_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("standing_since_ms", sa.BigInteger(), nullable=True),
        sa.Column("challenged_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("attested_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("no_report_before_ms", sa.BigInteger(), nullable=False),
        sa.Column("verdict_trust_epoch", sa.BigInteger(), nullable=False),
        sa.Column("verdict_policy_epoch", sa.BigInteger(), nullable=False),
        sa.Column("verdict_global_epoch", sa.BigInteger(), nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False),
        sa.Column("variant_firmware", sa.String(length=63), nullable=False),
        sa.Column("variant_secure_boot", sa.String(length=63), nullable=False),
        sa.Column("variant_boot_loader", sa.String(length=63), nullable=False),
        sa.Column("variant_kernel", sa.String(length=63), nullable=False),
        sa.Column("variant_command_line", sa.String(length=63), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("boot", sa.LargeBinary(), nullable=False),
        sa.Column("tpm_position", sa.LargeBinary(), nullable=False),
        sa.Column("tpm_firmware", sa.LargeBinary(), nullable=False),
        sa.Column("boot_log_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("ima_state", sa.LargeBinary(), nullable=False),
        sa.Column("ima_offset", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("length(tpm_position) IN (0, 16)", name="host_position_size"),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.cluster_id"]),
        sa.PrimaryKeyConstraint("host_id"),
        sa.UniqueConstraint("ak_public"),
        sa.UniqueConstraint("ek_sha256"),
        sa.UniqueConstraint("reserved_name"),
        sa.UniqueConstraint("tls_spki_sha256"),
    )
    op.create_table(
        "challenge_used",
        sa.Column("challenge_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("challenge_sha256"),
    )
    op.create_table(
        "verdict",
        sa.Column("verdict_id", sa.String(length=64), nullable=False),
        sa.Column("host_id", sa.String(length=34), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("decided_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("seal", sa.Text(), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.Column("evidence_sha256", sa.String(length=64), nullable=False),
        sa.Column("boot_log_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("ima_log_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("userspace_log_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("verdict_id"),
    )
    op.create_index("verdict_by_host", "verdict", ["host_id", "decided_at_ms"], unique=False)
    op.create_index("verdict_by_age", "verdict", ["passed", "decided_at_ms", "size"], unique=False)
    for name in ("evidence", "boot_log", "ima_log", "userspace_log"):
        op.create_index(f"verdict_by_{name}", "verdict", [f"{name}_sha256"], unique=False)
    op.create_table(
        "evidence_blob",
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("stored_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_index("evidence_blob_by_size", "evidence_blob", ["size"], unique=False)
    op.create_table(
        "revocation_list",
        sa.Column("cluster_id", sa.String(63), nullable=False),
        sa.Column("list_id", sa.String(64), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("revoked", sa.Integer(), nullable=False),
        sa.Column("this_update_ms", sa.BigInteger(), nullable=False),
        sa.Column("next_update_ms", sa.BigInteger(), nullable=False),
        sa.Column("added_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("added_by", sa.String(128), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.cluster_id"]),
        sa.PrimaryKeyConstraint("cluster_id", "list_id"),
    )
    op.create_table(
        "runtime_rules",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("uploaded_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("uploaded_by", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )


def _vms() -> None:
    """Protected VMs and their keys."""
    op.create_table(
        "vm",
        sa.Column("vm_id", sa.String(length=63), nullable=False),
        sa.Column("cluster_id", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("key_state", sa.String(length=24), nullable=True),
        sa.Column("key_epoch", sa.BigInteger(), nullable=False),
        sa.Column("profile_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("lease_class", sa.String(length=16), nullable=False),
        sa.Column("lease_ms", sa.BigInteger(), nullable=False),
        sa.Column("continue_for_ms", sa.BigInteger(), nullable=False),
        sa.Column("skew_ms", sa.BigInteger(), nullable=False),
        sa.Column("sharing", sa.String(length=16), nullable=False),
        sa.Column("on_lease_loss", sa.String(length=24), nullable=False),
        sa.Column("any_host_of_cluster", sa.Boolean(), nullable=False),
        sa.Column("protected_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("protected_by", sa.String(length=128), nullable=False),
        sa.Column("owner", sa.String(length=34), nullable=True),
        sa.Column("last_owner", sa.String(length=34), nullable=True),
        sa.Column("owner_boot", sa.LargeBinary(), nullable=False),
        sa.Column("grant_epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("fence_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("move_id", sa.String(length=64), nullable=True),
        sa.Column("move_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("policy_version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.cluster_id"]),
        sa.PrimaryKeyConstraint("vm_id"),
    )
    op.create_index("vm_by_owner", "vm", ["owner"], unique=False)
    key_tables.create()
    op.create_table(
        "intent",
        sa.Column("intent_id", sa.String(length=64), nullable=False),
        sa.Column("vm_id", sa.String(length=63), nullable=False),
        sa.Column("destination", sa.String(length=34), nullable=False),
        sa.Column("created_by", sa.String(length=192), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("used_by", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.vm_id"]),
        sa.PrimaryKeyConstraint("intent_id"),
    )
    op.create_index("intent_by_vm", "intent", ["vm_id", "destination"], unique=False)
    op.create_table(
        "break_glass",
        sa.Column("glass_id", sa.String(length=64), nullable=False),
        sa.Column("vm_id", sa.String(length=63), nullable=False),
        sa.Column("host_id", sa.String(length=34), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("opened_by", sa.String(length=128), nullable=False),
        sa.Column("opened_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("closed_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("closed_by", sa.String(length=128), nullable=False),
        sa.Column("used_by", sa.String(length=64), nullable=True),
        sa.Column("grant_epoch", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.vm_id"]),
        sa.PrimaryKeyConstraint("glass_id"),
    )
    op.create_index("break_glass_by_vm", "break_glass", ["vm_id", "host_id"], unique=False)


def _placement() -> None:
    """Grants and moves."""
    op.create_table(
        "vm_grant",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("vm_id", sa.String(length=63), nullable=False),
        sa.Column("host_id", sa.String(length=34), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("grant_epoch", sa.BigInteger(), nullable=False),
        sa.Column("key_epoch", sa.BigInteger(), nullable=False),
        sa.Column("trust_epoch", sa.BigInteger(), nullable=False),
        sa.Column("policy_epoch", sa.BigInteger(), nullable=False),
        sa.Column("global_epoch", sa.BigInteger(), nullable=False),
        sa.Column("boot", sa.LargeBinary(), nullable=False),
        sa.Column("lease_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("move_id", sa.String(length=64), nullable=True),
        sa.Column("response_hash", sa.LargeBinary(), nullable=True),
        sa.Column("replays", sa.BigInteger(), nullable=False),
        sa.Column("authorised_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.vm_id"]),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("grant_by_host", "vm_grant", ["host_id", "authorised_at_ms"], unique=False)
    op.create_table(
        "vm_move",
        sa.Column("move_id", sa.String(length=64), nullable=False),
        sa.Column("vm_id", sa.String(length=63), nullable=False),
        sa.Column("source", sa.String(length=34), nullable=False),
        sa.Column("destination", sa.String(length=34), nullable=False),
        sa.Column("grant_epoch", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("prepared_boot", sa.LargeBinary(), nullable=True),
        sa.Column("replays", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.vm_id"]),
        sa.PrimaryKeyConstraint("move_id"),
    )
    op.create_table(
        "move_order",
        sa.Column("order_id", sa.String(length=64), nullable=False),
        sa.Column("vm_id", sa.String(length=63), nullable=False),
        sa.Column("source", sa.String(length=34), nullable=False),
        sa.Column("destination", sa.String(length=34), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(length=192), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.vm_id"]),
        sa.PrimaryKeyConstraint("order_id"),
    )
    op.create_index("move_order_by_vm", "move_order", ["vm_id"], unique=False)
    op.create_index("move_order_open", "move_order", ["state", "expires_ms"], unique=False)


def _authority() -> None:
    """The one row about the whole authority, and the log."""
    op.create_table(
        "authority",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("global_epoch", sa.BigInteger(), nullable=False),
        sa.Column("no_report_before_ms", sa.BigInteger(), nullable=False),
        sa.Column("high_water_ms", sa.BigInteger(), nullable=False),
        sa.Column("hold_owners_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("least_offset_ms", sa.BigInteger(), nullable=False),
        sa.Column("longest_fence_ms", sa.BigInteger(), nullable=False),
        sa.Column("halted_because", sa.Text(), nullable=False),
        sa.Column("era", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name="authority_is_one_row"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "audit",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("frontier", sa.LargeBinary(), nullable=False),
        sa.Column("operation", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=80), nullable=False),
        sa.Column("actor", sa.String(length=192), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
    )
    op.create_index("audit_by_subject", "audit", ["operation", "subject"], unique=False)
    op.create_index("audit_by_actor", "audit", ["operation", "actor", "subject"], unique=False)
    op.execute(
        sa.text(
            "INSERT INTO authority (id, global_epoch, no_report_before_ms, high_water_ms,"
            " hold_owners_until_ms, boot_id, least_offset_ms, longest_fence_ms, halted_because,"
            " era)"
            " VALUES (1, 1, 0, 0, 0, '', 0, 0, '', 0)"
        )
    )
