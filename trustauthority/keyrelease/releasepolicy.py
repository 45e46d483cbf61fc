"""Release policies of VMs: documents, what they mean for decisions, and their owners' signatures.

What it trusts: nothing; a document is bytes from anywhere. What it guarantees: a document that is not
understood whole is refused; what decisions see is made of the document alone; a signature counts only
over the canonical bytes of one version of one VM's policy. What it does not do: decide
(``placement.release_policy``) or store. Source: docs/reference/keys.md.
"""

import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from trustauthority.errors import OwnerSignatureInvalid, PolicyInvalid
from trustauthority.model.baseline import Component
from trustauthority.model.identifiers import VmId, is_name
from trustauthority.model.releasepolicy import ReleasePolicy, ReleasePolicyRecord

FORMAT = "ta-release-policy-v1"
LABEL = b"ta-release-policy-v1\n"
"""Goes before the document in what is signed: a signature of anything else is none of this."""
MAX_DOCUMENT = 16_384
MAX_NAMES = 64
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LISTS = {"clusters": "clusters", "hostClasses": "host_classes", "regions": "regions"}
_KEYS = frozenset(
    {"format", "vm", "version", *_LISTS, "maxEvidenceAgeMs", "variants", "hours", "ownerKey"}
)


def decode_release_policy(document: bytes) -> ReleasePolicy:
    """Read a document.

    Raises:
        PolicyInvalid: naming the field that is wrong.
    """
    if len(document) > MAX_DOCUMENT:
        raise _wrong("document", f"at most {MAX_DOCUMENT} bytes")
    try:
        found = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise _wrong("document", "not JSON") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _wrong("format", f"{FORMAT} is expected")
    unknown = sorted(set(found) - _KEYS)
    if unknown:
        raise _wrong(unknown[0], "not a field of a release policy")
    policy = ReleasePolicy(
        vm=_name(found.get("vm"), "vm"),
        version=_number(found.get("version"), "version", least=1),
        **{ours: _names(found.get(field, []), field) for field, ours in _LISTS.items()},
        max_evidence_age_ms=_number(found.get("maxEvidenceAgeMs", 0), "maxEvidenceAgeMs", least=0),
        variants=_variants(found.get("variants", {})),
        hours=tuple(_texts(found.get("hours", []), "hours")),
        owner_key=_owner_key(found.get("ownerKey", "")),
    )
    for line in policy.hours:
        hours_of(line)
    return policy


def encode_release_policy(policy: ReleasePolicy) -> bytes:
    """The canonical bytes: what is stored and what the owner signs."""
    return json.dumps(
        {
            "format": FORMAT,
            "vm": policy.vm,
            "version": policy.version,
            "clusters": list(policy.clusters),
            "hostClasses": list(policy.host_classes),
            "regions": list(policy.regions),
            "maxEvidenceAgeMs": policy.max_evidence_age_ms,
            "variants": {str(each): list(names) for each, names in policy.variants.items()},
            "hours": list(policy.hours),
            "ownerKey": policy.owner_key,
        },
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
    ).encode()


def decision_record(policy: ReleasePolicy) -> ReleasePolicyRecord:
    """What release decisions see of a policy."""
    hours = sorted({hour for line in policy.hours for hour in hours_of(line)})
    variants = {
        f"variants_{component.name.lower()}": _list(policy.variants.get(component, ()))
        for component in Component
    }
    return ReleasePolicyRecord(
        vm_id=VmId(policy.vm),
        version=policy.version,
        clusters=_list(policy.clusters),
        host_classes=_list(policy.host_classes),
        regions=_list(policy.regions),
        hours=_list(tuple(f"h{hour}" for hour in hours)),
        max_evidence_age_ms=policy.max_evidence_age_ms,
        **variants,
    )


def explain(policy: ReleasePolicy) -> tuple[str, ...]:
    """What a policy asks for, a line each."""
    lines = [
        (policy.clusters, "the host's cluster is one of: "),
        (policy.host_classes, "the host's class is one of: "),
        (policy.regions, "the host's region is one of: "),
        (policy.hours, "it is one of these hours (UTC): "),
    ]
    found = [text + ", ".join(names) for names, text in lines if names]
    for component, names in policy.variants.items():
        found.append(f"the host's {component} matched one of: {', '.join(names)}")
    if policy.max_evidence_age_ms:
        found.append(f"the host's newest quote is at most {policy.max_evidence_age_ms} ms old")
    if policy.owner_key:
        found.append("the owner's key signs the next version of this policy")
    return tuple(found) or ("the cluster's policy accepts it",)


def check_owner_signature(owner_key: str, document: bytes, signature: bytes) -> None:
    """Check that the owner signed a document: Ed25519, or ECDSA P-256 with SHA-256 in DER form.

    Raises:
        OwnerSignatureInvalid: not by this key, or over other bytes.
    """
    key = _public_key(b64decode(owner_key))
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, LABEL + document)
        else:
            key.verify(signature, LABEL + document, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise OwnerSignatureInvalid(
            "the VM's owner did not sign this version of the release policy: ta vm policy sign"
        ) from error


def hours_of(line: str) -> frozenset[int]:
    """The hours of the week of ``mon-fri 08-18``, ``sat 09-12`` or ``daily 00-24``: 0 is Monday 00 UTC.

    Raises:
        PolicyInvalid: it is nothing like that.
    """
    days, _, times = line.partition(" ")
    first, _, last = ("mon-sun" if days == "daily" else days).partition("-")
    start, _, end = times.partition("-")
    known = first in DAYS and (last or first) in DAYS
    if not known or not _is_hour(start) or not _is_hour(end) or not int(start) < int(end) <= 24:
        raise _wrong("hours", f"{line!r} is nothing like 'mon-fri 08-18' or 'daily 06-24'")
    span = range(DAYS.index(first), DAYS.index(last or first) + 1)
    if not span:
        raise _wrong("hours", f"{line!r}: the week begins on Monday")
    return frozenset(24 * day + hour for day in span for hour in range(int(start), int(end)))


def _is_hour(text: str) -> bool:
    return len(text) == 2 and text.isascii() and text.isdigit()


def _list(names: tuple[str, ...]) -> str:
    return f",{','.join(names)}," if names else ""


def _wrong(field: str, why: str) -> PolicyInvalid:
    return PolicyInvalid(f"release policy, {field}: {why}", fields=field)


def _name(value: Any, field: str) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise _wrong(field, "1-63 characters of a-z 0-9 . _ -")
    return value


def _texts(value: Any, field: str) -> list[str]:
    if not isinstance(value, list) or len(value) > MAX_NAMES:
        raise _wrong(field, f"a list of at most {MAX_NAMES}")
    if not all(isinstance(each, str) for each in value):
        raise _wrong(field, "a list of texts")
    return value


def _names(value: Any, field: str) -> tuple[str, ...]:
    return tuple(_name(each, field) for each in _texts(value, field))


def _number(value: Any, field: str, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**53:
        raise _wrong(field, f"an integer, at least {least}")
    return value


def _variants(value: Any) -> Mapping[Component, tuple[str, ...]]:
    if not isinstance(value, dict) or not set(value) <= set(Component):
        raise _wrong("variants", f"lists of baselines by {', '.join(Component)}")
    return {each: _names(value[each], f"variants.{each}") for each in Component if value.get(each)}


def _owner_key(value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong("ownerKey", "base64 of a SubjectPublicKeyInfo")
    if value:
        try:
            _public_key(b64decode(value, validate=True))
        except ValueError as error:
            raise _wrong("ownerKey", "base64 of an Ed25519 or P-256 public key") from error
    return value


def _public_key(der: bytes) -> Ed25519PublicKey | ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(der)
    except UnsupportedAlgorithm as error:
        raise ValueError("an algorithm that is not supported") from error
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ValueError("neither Ed25519 nor P-256")
