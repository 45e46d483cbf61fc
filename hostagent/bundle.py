"""An evidence bundle for support: what this host would show, in one tar file.

Stage: I/O of the agent. Needs a TPM and an AK, neither an authority nor a network. Guarantees that
the nonce is fresh, that the quote covers every allocated PCR of the banks we know, that logs are read after the quote,
and that no key, certificate of this host or other secret is inside. Does not judge.
Format: docs/reference/evidence-bundle.md, version 1.
"""

import datetime as dt
import hashlib
import io
import json
import secrets
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hostagent.collect import (
    LogPaths,
    ima_chunks,
    qualifying_data,
    quote,
    read_boot_log,
    read_userspace_log,
)
from hostagent.files import write_private
from hostagent.keys import HostKeys
from hostagent.ports import TpmPort

FORMAT = "trustauthority-evidence-bundle"
VERSION = 1
PURPOSE = "bundle"
"""Purpose in qualifyingData: such a quote answers no challenge of an authority."""
_MAX_IMA = 64 * 1024 * 1024
"""Bytes of the IMA log that are taken; the manifest says whether it was longer."""


def collect_bundle(
    tpm: TpmPort,
    keys: HostKeys,
    logs: LogPaths,
    *,
    labels: Mapping[str, str],
    now: dt.datetime,
) -> bytes:
    """Quote, read the logs, and return the tar.

    Args:
        tpm: the TPM.
        keys: its keys.
        logs: where the logs are.
        labels: host, cluster and host id as configured; for people, proves nothing.
        now: the time that is written into the manifest.

    Raises TpmError or OSError.
    """
    nonce = secrets.token_bytes(32)
    # a bank whose hash has no name yet can't be selected by name
    banks = tuple(bank for bank in tpm.active_banks() if not bank.bank.startswith("0x"))
    quoted = quote(tpm, keys, banks, qualifying_data(nonce, keys.identity.name, PURPOSE))
    boot = read_boot_log(logs.boot)
    ima, truncated = _ima_log(logs.ima)
    clock = tpm.read_clock()
    files = {
        "quote.attest": quoted.attest,
        "quote.signature": quoted.signature,
        "pcr-values.bin": quoted.pcr_values,
        "ak.public": keys.ak.public,
        "tls.public": keys.identity.public,
        "ek.public": keys.endorsement.key.public,
        "ek.certificate": keys.endorsement.certificate,
        **{f"ek-chain-{i}.der": c for i, c in enumerate(keys.endorsement.intermediates)},
        "boot.log": boot.body,
        "ima.log": ima,
        "userspace.log": read_userspace_log(logs.userspace),
    }
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "created_at": now.astimezone(dt.UTC).isoformat(timespec="seconds"),
        "labels": dict(labels),
        "nonce": nonce.hex(),
        "purpose": PURPOSE,
        "qualifying_data": qualifying_data(nonce, keys.identity.name, PURPOSE).hex(),
        "tls_key_name": keys.identity.name.hex(),
        "ak_name": keys.ak.name.hex(),
        "ek_algorithm": str(keys.endorsement.algorithm),
        "selections": [{"bank": b.bank, "indices": list(b.indices)} for b in banks],
        "tpm_clock": {
            "clock": clock.clock,
            "reset_count": clock.reset_count,
            "restart_count": clock.restart_count,
            "safe": clock.safe,
        },
        "ima_log_truncated": truncated,
        "files": {
            name: {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            for name, body in files.items()
            if body
        },
    }
    return _tar(manifest, {name: body for name, body in files.items() if body}, now)


def write_bundle(path: Path, content: bytes) -> None:
    """Write a bundle with mode 0600: it tells exactly which software a host runs."""
    write_private(path, content)


def _ima_log(path: Path) -> tuple[bytes, bool]:
    parts, size = [], 0
    for part in ima_chunks(path, 0):
        parts.append(part)
        size += len(part)
        if size > _MAX_IMA:
            return b"".join(parts)[:_MAX_IMA], True
    return b"".join(parts), False


def _tar(manifest: Mapping[str, Any], files: Mapping[str, bytes], now: dt.datetime) -> bytes:
    text = json.dumps(manifest, indent=1).encode() + b"\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, body in {"manifest.json": text, **files}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(body), 0o600, int(now.timestamp())
            tar.addfile(entry, io.BytesIO(body))
    return buffer.getvalue()
