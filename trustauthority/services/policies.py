"""Policies of clusters: documents with the terms that placement needs, and the one in force."""

import hashlib
from functools import lru_cache

from trustauthority.codec.policy import decode_policy
from trustauthority.errors import NotFound, PolicyInvalid
from trustauthority.model import policy as nouns
from trustauthority.model.catalogue import ClusterEntry
from trustauthority.model.lease import OnLeaseLoss
from trustauthority.model.policy import Policy
from trustauthority.placement.clock import least_skew_ms
from trustauthority.ports import Transaction

DEFAULT_DOCUMENT = 'name = "default"\n'


@lru_cache(maxsize=64)
def parse_policy(document: str) -> Policy:
    """Read a policy document that may come into force; remembered, as each attestation asks for one.

    Raises:
        PolicyInvalid: with every problem and its path.
    """
    policy = decode_policy(document)
    problems = _lease_problems(policy.leases)
    if problems:
        raise PolicyInvalid("; ".join(problems), fields=", ".join(problems))
    return policy


def document_sha256(document: str) -> str:
    """Hex SHA-256 of a document."""
    return hashlib.sha256(document.encode()).hexdigest()


def _lease_problems(leases: nouns.LeasePolicy) -> list[str]:
    """A slow host must have destroyed its VM before the fence has passed (S8)."""
    if leases.continue_for_ms < 0:
        return ["leases.continue_for_ms: not negative"]
    if (leases.on_lease_loss is OnLeaseLoss.CONTINUE_FOR) != (leases.continue_for_ms > 0):
        return ['leases.continue_for_ms: with on_lease_loss = "continue-for", and only then']
    least_ms = least_skew_ms(max(leases.strict_ms, leases.standard_ms), leases.continue_for_ms)
    if leases.skew_ms < least_ms:
        return [f"leases.skew_ms: leases of this length need at least {least_ms}"]
    return []


async def cluster_policy(tx: Transaction, cluster: str) -> tuple[ClusterEntry, Policy]:
    """The cluster and its policy.

    Raises:
        NotFound: no such cluster.
    """
    # an empty name would list all of them
    found = await tx.catalogue.clusters(cluster) if cluster else ()
    if not found:
        raise NotFound(f"there is no cluster {cluster!r}", kind="cluster", name=cluster)
    return found[0], parse_policy(found[0].policy_document)
