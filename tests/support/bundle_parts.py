"""A good evidence bundle as an authority writes it, of which one part at a time is exchanged."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

from hostagent.collect import qualifying_data
from support.simulated_host import SimulatedTpm
from support.small_bundle import BASELINES, GOOD, KEY, NONCE, POLICY, RULES, quoted
from support.tpm_structures import TLS_ATTRIBUTES, name_of, public_area, qualified
from trustauthority.appraisal.appraise import judge_runtime
from trustauthority.appraisal.baseline import encode_baseline
from trustauthority.appraisal.rejudge import Grounds, Judged, judge_bundle
from trustauthority.appraisal.runtimestate import KnownRuntime, encode_runtime
from trustauthority.codec.bundle import Bundle
from trustauthority.verification.pipeline import expect_evidence, verify_evidence

TPM = SimulatedTpm("bundle")
TLS_AREA = public_area(TPM.key("tls").public_key(), TLS_ATTRIBUTES)
ENDORSEMENT = b"\x40\x00\x00\x0b"
DOCUMENT = f"""
name = "strict"
[runtime]
boot_aggregate = "required"
violations = "required"
files = "required"
rules = "{POLICY.runtime.rules}"
"""
PARTS = (
    "manifest",
    "quote.attest",
    "quote.signature",
    "pcr-values.bin",
    "ak.public",
    "ek.public",
    "tls.public",
    "boot.log",
    "ima.log",
    "policy.toml",
    "baselines.json",
    "runtime-before.json",
)


@cache
def good_bundle() -> Bundle:
    """A bundle whose verdict passes; its runtime log continues what the authority knew."""
    ek = TPM.ek_public
    signer = qualified(qualified(ENDORSEMENT, name_of(ek)), name_of(KEY.public))
    first = quoted(qualifying_data(NONCE, name_of(TLS_AREA)), signer)
    expected = expect_evidence(
        ak_public=KEY.public,
        ek_public=ek,
        tls_public=TLS_AREA,
        challenge=NONCE,
        purpose="attest",
        last_clock=None,
        progress=None,
    )
    verified = verify_evidence(replace(GOOD, **first), expected, POLICY, RULES)
    files = judge_runtime(verified.runtime, RULES, None)
    known = KnownRuntime(progress=verified.runtime.progress, files=files)
    clock = verified.quote.clock_info
    second = quoted(qualifying_data(NONCE, name_of(TLS_AREA)), signer, clock=clock.clock + 5)
    manifest: dict[str, Any] = {
        "labels": {"host": "a", "host_id": "h-1", "cluster": "prod"},
        "nonce": NONCE.hex(),
        "purpose": "attest",
        "source": "authority",
        "ima_offset": known.progress.offset,
        "tpm_position_before": (clock.counter_bytes + clock.clock.to_bytes(8, "big")).hex(),
        "tpm_firmware_before": "0000000000000001",
        "tpm_manufacturer": "IBM",
    }
    parts = {
        "quote.attest": second["attest"],
        "quote.signature": second["signature"],
        "pcr-values.bin": GOOD.pcr_values,
        "ak.public": KEY.public,
        "ek.public": ek,
        "tls.public": TLS_AREA,
        "boot.log": GOOD.boot_log,
        "ima.log": b"",
        "policy.toml": DOCUMENT.encode(),
        "baselines.json": json.dumps([json.loads(encode_baseline(b)) for b in BASELINES]).encode(),
        "runtime-before.json": encode_runtime(known),
    }
    return Bundle(manifest=manifest, parts=parts)


def judged(bundle: Bundle) -> Judged:
    """The verdict on its own grounds."""
    return judge_bundle(bundle, Grounds(rules=RULES), 1_000)


def with_part(data: bytes) -> Judged:
    """The good bundle with the part exchanged that the first byte names."""
    good = good_bundle()
    name, content = PARTS[data[0] % len(PARTS) if data else 0], data[1:]
    if name != "manifest":
        return judged(replace(good, parts={**good.parts, name: content}))
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = {}
    manifest = {**good.manifest, **(fields if isinstance(fields, dict) else {})}
    return judged(replace(good, manifest=manifest))


def part_seeds() -> list[bytes]:
    """Each part as it is, behind its number."""
    good = good_bundle()
    parts = [b"\0" + json.dumps(dict(good.manifest)).encode()]
    return parts + [bytes((n,)) + good.parts[name] for n, name in enumerate(PARTS) if n]
