"""Evidence bundles: what stands behind a verdict on a host, so that anybody can judge it again.

What it guarantees: the parts are those that were judged, byte for byte (rule 67), with the policy and
the baselines that are in force now; no secret is inside. Format: docs/reference/evidence-bundle.md.
"""

import datetime as dt
import json

from trustauthority.codec.bundle import encode_bundle
from trustauthority.codec.tpm import decode_public, object_name
from trustauthority.codec.x509 import split_chain
from trustauthority.errors import NotFound
from trustauthority.model.baseline import BaselineState
from trustauthority.ports import Store
from trustauthority.services.hosts import find_host
from trustauthority.services.policies import cluster_policy
from trustauthority.services.verdicts import archived_evidence
from trustauthority.verification.challenge import Purpose, qualifying_data


async def evidence_bundle(store: Store, name: str, *, verdict_id: str = "") -> bytes:
    """The evidence bundle behind one verdict on a host.

    Args:
        store: the store.
        name: name or id of the host.
        verdict_id: an earlier verdict, as the audit log names it; the newest one when empty.

    Raises:
        NotFound: the host never sent evidence, or it is not kept any more.
    """
    async with store.snapshot() as tx:
        host = await find_host(tx, name)
        chosen = verdict_id or host.verdict_id
        stored = None if chosen is None else await tx.archive.get_verdict(chosen)
        if verdict_id and (stored is None or stored["host_id"] != host.host_id):
            raise NotFound(
                f"no verdict {verdict_id} on {name} is kept", kind="evidence", name=verdict_id
            )
        if stored is None:
            raise NotFound(f"{name} never sent evidence", kind="evidence", name=name)
        archived = await archived_evidence(tx, str(stored["evidence_sha256"]))
        cluster, _ = await cluster_policy(tx, host.cluster_id)
        baselines = [
            json.loads(entry.document)
            for entry in await tx.baselines.entries(host.cluster_id)
            if entry.state is BaselineState.APPROVED
        ]
        now_ms = tx.now_ms
    evidence = archived.evidence
    tls_name = object_name(decode_public(host.tls_public))
    made_at = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
    manifest: dict[str, object] = {
        "source": "authority",
        "created_at": made_at.isoformat(timespec="seconds"),
        "labels": {
            "host": host.name,
            "cluster": host.cluster_id,
            "host_id": host.host_id,
            "host_class": host.host_class,
        },
        "nonce": evidence.challenge.hex(),
        "purpose": str(Purpose.ATTEST),
        "qualifying_data": qualifying_data(evidence.challenge, tls_name, Purpose.ATTEST).hex(),
        "tls_key_name": tls_name.hex(),
        "ak_name": object_name(decode_public(host.ak_public)).hex(),
        "tpm_manufacturer": host.tpm_manufacturer,
        "endorsement": f"{host.tpm} ({host.anchor})",
        "ima_offset": evidence.ima_offset,
        "policy_sha256": cluster.policy_sha256,
        "verdict_id": chosen,
    }
    if archived.position_before:
        manifest["tpm_position_before"] = archived.position_before.hex()
        manifest["tpm_firmware_before"] = archived.firmware_before.hex()
    parts = {
        "quote.attest": evidence.attest,
        "quote.signature": evidence.signature,
        "pcr-values.bin": evidence.pcr_values,
        "ak.public": host.ak_public,
        "tls.public": host.tls_public,
        "ek.public": host.ek_public,
        "ek.certificate": host.ek_certificate,
        "boot.log": evidence.boot_log,
        "ima.log": evidence.ima_log,
        "runtime-before.json": archived.runtime_before,
        "verdict.json": str(stored["document"]).encode(),
        "report.jwt": str(stored["report"]).encode(),
        "policy.toml": cluster.policy_document.encode(),
        "baselines.json": json.dumps(baselines, sort_keys=True).encode(),
    }
    for number, certificate in enumerate(split_chain(host.ek_chain)[1:]):
        parts[f"ek-chain-{number}.der"] = certificate
    return encode_bundle(manifest, parts, made_at_s=now_ms // 1000)
