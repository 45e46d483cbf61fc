"""The tables, once, for SQLite and PostgreSQL.

Times are integer milliseconds of the store's clock. TPM counters are 16-byte big-endian blobs
(resetCount, restartCount, clock), so that they compare as unsigned numbers and never overflow
(N84). Migrations in ``migrations/`` are checked against this file by a test.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from trustauthority.placement.release_policy import COMPONENTS

metadata = MetaData()

authority = Table(
    "authority",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("global_epoch", BigInteger, nullable=False),
    Column("no_report_before_ms", BigInteger, nullable=False),
    Column("high_water_ms", BigInteger, nullable=False),
    Column("hold_owners_until_ms", BigInteger, nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("least_offset_ms", BigInteger, nullable=False),
    Column("longest_fence_ms", BigInteger, nullable=False),
    Column("halted_because", Text, nullable=False),
    Column("era", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="authority_is_one_row"),
)
"""One row: what holds for every host. ``halted_because`` stops all releases when not empty;
``era`` grows with each accepted loss: checkpoints of an earlier one need not be in the log."""

cluster = Table(
    "cluster",
    metadata,
    Column("cluster_id", String(63), primary_key=True),
    Column("may_hold_keys", Boolean, nullable=False),
    Column("live_grants_cap", BigInteger, nullable=False),
    Column("new_grants_cap", BigInteger, nullable=False),
    Column("offer_ms", BigInteger, nullable=False),
    Column("prepare_for_ms", BigInteger, nullable=False),
    Column("warned_hosts_take", Boolean, nullable=False),
    Column("policy_document", Text, nullable=False),
    Column("policy_sha256", String(64), nullable=False),
    Column("policy_epoch", BigInteger, nullable=False),
    Column("applied_at_ms", BigInteger, nullable=False),
    Column("applied_by", String(128), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)

anchor = Table(
    "anchor",
    metadata,
    Column("cluster_id", ForeignKey("cluster.cluster_id"), primary_key=True),
    Column("anchor_id", String(64), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("ek_type", String(8), nullable=False),
    Column("subject", Text, nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("added_at_ms", BigInteger, nullable=False),
    Column("added_by", String(128), nullable=False),
)

inventory = Table(
    "inventory",
    metadata,
    Column("cluster_id", ForeignKey("cluster.cluster_id"), primary_key=True),
    Column("ek_sha256", String(64), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("host_class", String(63), nullable=False),
    Column("added_at_ms", BigInteger, nullable=False),
    Column("added_by", String(128), nullable=False),
)

baseline = Table(
    "baseline",
    metadata,
    Column("cluster_id", ForeignKey("cluster.cluster_id"), primary_key=True),
    Column("component", String(16), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("host_class", String(63), nullable=False),
    Column("state", String(16), nullable=False),
    Column("document", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("captured_from", Text, nullable=False),
    Column("captured_at_ms", BigInteger, nullable=False),
    Column("approved_by", String(128), nullable=False),
    Column("last_matched_at_ms", BigInteger),
)

pending = Table(
    "pending_enrolment",
    metadata,
    Column("pending_id", String(64), primary_key=True),
    Column("row_sha256", LargeBinary, nullable=False),
    Column("document", Text, nullable=False),
    Column("peer", String(64), nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
)

host = Table(
    "host",
    metadata,
    Column("host_id", String(34), primary_key=True),
    Column("cluster_id", ForeignKey("cluster.cluster_id"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("reserved_name", String(63), unique=True),
    Column("ek_sha256", String(64), nullable=False, unique=True),
    Column("ek_public", LargeBinary, nullable=False),
    Column("ek_certificate", LargeBinary, nullable=False),
    Column("ak_public", LargeBinary, nullable=False, unique=True),
    Column("tls_public", LargeBinary, nullable=False),
    Column("storage_public", LargeBinary, nullable=False),
    Column("storage_qualified_name", LargeBinary, nullable=False),
    Column("tls_spki_sha256", String(64), nullable=False, unique=True),
    Column("approval_sha256", String(64), nullable=False),
    Column("anchor", Text, nullable=False),
    Column("tpm", Text, nullable=False),
    Column("tpm_manufacturer", Text, nullable=False),
    Column("ek_chain", LargeBinary, nullable=False),
    Column("enrolled_at_ms", BigInteger, nullable=False),
    Column("admission", String(16), nullable=False),
    Column("admitted", Boolean, nullable=False),
    Column("host_class", String(63), nullable=False),
    Column("region", String(63), nullable=False),
    Column("revoked", Boolean, nullable=False),
    Column("trust_epoch", BigInteger, nullable=False),
    Column("draining", Boolean, nullable=False),
    # the newest verdict, and the epochs it was made under
    Column("verdict_id", String(64)),
    Column("passed", Boolean),
    Column("warned", Boolean, nullable=False),
    Column("decided_at_ms", BigInteger),
    Column("standing_since_ms", BigInteger),
    Column("challenged_at_ms", BigInteger, nullable=False),
    Column("attested_until_ms", BigInteger, nullable=False),
    Column("no_report_before_ms", BigInteger, nullable=False),
    Column("verdict_trust_epoch", BigInteger, nullable=False),
    Column("verdict_policy_epoch", BigInteger, nullable=False),
    Column("verdict_global_epoch", BigInteger, nullable=False),
    Column("baseline", Text, nullable=False),
    *(Column(f"variant_{each}", String(63), nullable=False) for each in COMPONENTS),
    Column("reason", Text, nullable=False),
    # the TPM's position, and what of its logs is known
    Column("boot", LargeBinary, nullable=False),
    Column("tpm_position", LargeBinary, nullable=False),
    Column("tpm_firmware", LargeBinary, nullable=False),
    Column("boot_log_sha256", LargeBinary, nullable=False),
    Column("ima_state", LargeBinary, nullable=False),
    Column("ima_offset", BigInteger, nullable=False),
    # blobs compare as unsigned numbers only when they are equally long
    CheckConstraint("length(tpm_position) IN (0, 16)", name="host_position_size"),
)

challenge_used = Table(
    "challenge_used",
    metadata,
    Column("challenge_sha256", LargeBinary, primary_key=True),
    Column("expires_at_ms", BigInteger, nullable=False),
)

verdict = Table(
    "verdict",
    metadata,
    Column("verdict_id", String(64), primary_key=True),
    Column("host_id", String(34), nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("decided_at_ms", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Column("seal", Text, nullable=False),
    Column("report", Text, nullable=False),
    Column("evidence_sha256", String(64), nullable=False),
    Column("boot_log_sha256", LargeBinary, nullable=False),
    Column("ima_log_sha256", LargeBinary, nullable=False),
    Column("userspace_log_sha256", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
)
Index("verdict_by_host", verdict.c.host_id, verdict.c.decided_at_ms)
Index("verdict_by_age", verdict.c.passed, verdict.c.decided_at_ms, verdict.c.size)
Index("verdict_by_evidence", verdict.c.evidence_sha256)
Index("verdict_by_boot_log", verdict.c.boot_log_sha256)
Index("verdict_by_ima_log", verdict.c.ima_log_sha256)
Index("verdict_by_userspace_log", verdict.c.userspace_log_sha256)

blob = Table(
    "evidence_blob",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("content", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("stored_at_ms", BigInteger, nullable=False),
)
Index("evidence_blob_by_size", blob.c.size)

revocation_list = Table(
    "revocation_list",
    metadata,
    Column("cluster_id", ForeignKey("cluster.cluster_id"), primary_key=True),
    Column("list_id", String(64), primary_key=True),
    Column("issuer", Text, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("revoked", Integer, nullable=False),
    Column("this_update_ms", BigInteger, nullable=False),
    Column("next_update_ms", BigInteger, nullable=False),
    Column("added_at_ms", BigInteger, nullable=False),
    Column("added_by", String(128), nullable=False),
)

runtime_rules = Table(
    "runtime_rules",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("uploaded_at_ms", BigInteger, nullable=False),
    Column("uploaded_by", String(128), nullable=False),
)

vm = Table(
    "vm",
    metadata,
    Column("vm_id", String(63), primary_key=True),
    Column("cluster_id", ForeignKey("cluster.cluster_id"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("key_state", String(24)),
    Column("key_epoch", BigInteger, nullable=False),
    Column("profile_sha256", LargeBinary, nullable=False),
    Column("lease_class", String(16), nullable=False),
    Column("lease_ms", BigInteger, nullable=False),
    Column("continue_for_ms", BigInteger, nullable=False),
    Column("skew_ms", BigInteger, nullable=False),
    Column("sharing", String(16), nullable=False),
    Column("on_lease_loss", String(24), nullable=False),
    Column("any_host_of_cluster", Boolean, nullable=False),
    Column("protected_at_ms", BigInteger, nullable=False),
    Column("protected_by", String(128), nullable=False),
    # the grant; epochs only grow
    Column("owner", String(34)),
    Column("last_owner", String(34)),
    Column("owner_boot", LargeBinary, nullable=False),
    Column("grant_epoch", BigInteger, nullable=False),
    Column("lease_until_ms", BigInteger, nullable=False),
    Column("fence_until_ms", BigInteger, nullable=False),
    # the one move under way
    Column("move_id", String(64)),
    Column("move_until_ms", BigInteger, nullable=False),
    Column("policy_version", BigInteger, nullable=False),
)
Index("vm_by_owner", vm.c.owner)

vm_key = Table(
    "vm_key",
    metadata,
    Column("vm_id", ForeignKey("vm.vm_id"), primary_key=True),
    Column("key_epoch", BigInteger, primary_key=True),
    Column("state", String(24), nullable=False),
    Column("provider", String(63), nullable=False),
    Column("kek_id", Text, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("escrowed", LargeBinary, nullable=False, default=b""),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("changed_at_ms", BigInteger, nullable=False),
    Column("destroy_at_ms", BigInteger, nullable=False),
)
Index("vm_key_by_provider", vm_key.c.provider, vm_key.c.vm_id, vm_key.c.key_epoch)
Index("vm_key_to_destroy", vm_key.c.destroy_at_ms)

intent = Table(
    "intent",
    metadata,
    Column("intent_id", String(64), primary_key=True),
    Column("vm_id", ForeignKey("vm.vm_id"), nullable=False),
    Column("destination", String(34), nullable=False),
    Column("created_by", String(192), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("used_by", String(64)),
)
Index("intent_by_vm", intent.c.vm_id, intent.c.destination)

grant = Table(
    "vm_grant",
    metadata,
    Column("request_id", String(64), primary_key=True),
    Column("vm_id", ForeignKey("vm.vm_id"), nullable=False),
    Column("host_id", String(34), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("grant_epoch", BigInteger, nullable=False),
    Column("key_epoch", BigInteger, nullable=False),
    Column("trust_epoch", BigInteger, nullable=False),
    Column("policy_epoch", BigInteger, nullable=False),
    Column("global_epoch", BigInteger, nullable=False),
    Column("boot", LargeBinary, nullable=False),
    Column("lease_until_ms", BigInteger, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("move_id", String(64)),
    Column("response_hash", LargeBinary),
    Column("replays", BigInteger, nullable=False),
    Column("authorised_at_ms", BigInteger, nullable=False),
)
"""One release each, found again by its request id; ``authorised_at_ms`` counts against caps."""
Index("grant_by_host", grant.c.host_id, grant.c.authorised_at_ms)

break_glass = Table(
    "break_glass",
    metadata,
    Column("glass_id", String(64), primary_key=True),
    Column("vm_id", ForeignKey("vm.vm_id"), nullable=False),
    Column("host_id", String(34), nullable=False),
    Column("reason", Text, nullable=False),
    Column("opened_by", String(128), nullable=False),
    Column("opened_at_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("closed_at_ms", BigInteger, nullable=False),
    Column("closed_by", String(128), nullable=False),
    Column("used_by", String(64)),
    Column("grant_epoch", BigInteger, nullable=False),
)
Index("break_glass_by_vm", break_glass.c.vm_id, break_glass.c.host_id)

move = Table(
    "vm_move",
    metadata,
    Column("move_id", String(64), primary_key=True),
    Column("vm_id", ForeignKey("vm.vm_id"), nullable=False),
    Column("source", String(34), nullable=False),
    Column("destination", String(34), nullable=False),
    Column("grant_epoch", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("prepared_boot", LargeBinary),
    Column("replays", BigInteger, nullable=False),
)

move_order = Table(
    "move_order",
    metadata,
    Column("order_id", String(64), primary_key=True),
    Column("vm_id", ForeignKey("vm.vm_id"), nullable=False),
    Column("source", String(34), nullable=False),
    Column("destination", String(34), nullable=False),
    Column("state", String(16), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("percent", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    Column("created_by", String(192), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
)
"""Wishes that give no right: a host is asked to move a VM."""
Index("move_order_by_vm", move_order.c.vm_id)
Index("move_order_open", move_order.c.state, move_order.c.expires_ms)

identity = Table(
    "identity",
    metadata,
    Column("key_sha256", String(64), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("roles", Text, nullable=False),
    Column("revoked", Boolean, nullable=False),
    Column("certificate_expires_ms", BigInteger, nullable=False),
    Column("issued_by", String(128), nullable=False),
    UniqueConstraint("name", name="identity_name_unique"),
)

audit = Table(
    "audit",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("content", LargeBinary, nullable=False),
    Column("leaf", LargeBinary, nullable=False),
    Column("frontier", LargeBinary, nullable=False),
    Column("operation", String(32), nullable=False),
    Column("subject", String(80), nullable=False),
    Column("actor", String(192), nullable=False),
)
"""``frontier`` is the tree's right edge after this entry, so that any root is one row away."""
Index("audit_by_subject", audit.c.operation, audit.c.subject)
Index("audit_by_actor", audit.c.operation, audit.c.actor, audit.c.subject)
