"""The VM's own release policy as preconditions of a release: data, like all other rules.

What it is: rules over the row of a VM's release policy. What it trusts: that the row says what the
signed document says; ``services.orders`` compares. What it guarantees: a VM with a policy whose row is
missing or of another version is released to nobody. What it does not do: parse documents, or end a
lease that runs: it counts when a key is released. Source: issue 5 (d); docs/reference/keys.md.
"""

from trustauthority.errors import KeyNotPermitted, QuoteTooOld
from trustauthority.placement.condition import (
    Absent,
    AllOf,
    AnyOf,
    Compare,
    Comparison,
    Condition,
    Field,
    Hour,
    Listed,
    Literal,
    Now,
    Rule,
    Sum,
    Term,
)

COMPONENTS = ("firmware", "secure_boot", "boot_loader", "kernel", "command_line")
"""Names of the columns ``variant_…`` of a host and ``variants_…`` of a policy."""
_NO_POLICY: Condition = Absent(Field("policy", "vm_id"))


def _is(field: Field, value: str | int) -> Condition:
    return Compare(field, Comparison.EQUAL, Literal(value))


def _one_of(names: str, item: Term) -> Condition:
    allowed = Field("policy", names)
    return AnyOf((_NO_POLICY, _is(allowed, ""), Listed(item, allowed)))


POLICY_KNOWN = Rule(
    name="release-policy-known",
    error=KeyNotPermitted,
    condition=AnyOf(
        (
            AllOf((_is(Field("vm", "policy_version"), 0), _NO_POLICY)),
            Compare(Field("policy", "version"), Comparison.EQUAL, Field("vm", "policy_version")),
        )
    ),
    says="the VM's release policy is not the one that was set last",
)
POLICY_CLUSTER = Rule(
    name="release-policy-cluster",
    error=KeyNotPermitted,
    condition=_one_of("clusters", Field("host", "cluster_id")),
    says="the VM's release policy does not name the host's cluster",
)
POLICY_CLASS = Rule(
    name="release-policy-class",
    error=KeyNotPermitted,
    condition=_one_of("host_classes", Field("host", "host_class")),
    says="the VM's release policy does not name the host's class",
)
POLICY_REGION = Rule(
    name="release-policy-region",
    error=KeyNotPermitted,
    condition=_one_of("regions", Field("host", "region")),
    says="the VM's release policy does not name the host's region",
)
POLICY_HOURS = Rule(
    name="release-policy-hours",
    error=KeyNotPermitted,
    condition=_one_of("hours", Hour()),
    says="the VM's release policy does not allow releases at this hour",
)
POLICY_VARIANTS = Rule(
    name="release-policy-variants",
    error=KeyNotPermitted,
    condition=AllOf(
        tuple(_one_of(f"variants_{each}", Field("host", f"variant_{each}")) for each in COMPONENTS)
    ),
    says="the host's boot is none of the baselines that the VM's release policy names",
)
POLICY_EVIDENCE_AGE = Rule(
    name="release-policy-evidence-age",
    error=QuoteTooOld,
    condition=AnyOf(
        (
            _NO_POLICY,
            _is(Field("policy", "max_evidence_age_ms"), 0),
            Compare(
                Now(),
                Comparison.AT_MOST,
                Sum((Field("host", "challenged_at_ms"), Field("policy", "max_evidence_age_ms"))),
            ),
        )
    ),
    says="the host's evidence is older than the VM's release policy accepts; attest and repeat",
)
RULES = (
    POLICY_KNOWN,
    POLICY_CLUSTER,
    POLICY_CLASS,
    POLICY_REGION,
    POLICY_HOURS,
    POLICY_VARIANTS,
    POLICY_EVIDENCE_AGE,
)
"""What a VM's release policy adds to every release of its key."""
