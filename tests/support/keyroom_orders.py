"""Orders to a key room, and a host in software that opens what it answers."""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hostagent.grant import GrantRequest, open_key_grant
from support.storage_key import SoftwareStorage
from trustauthority.adapters.keyroom import KeyRoomSettings
from trustauthority.adapters.kms.settings import KmipSettings
from trustauthority.codec.tpm_public import encode_public, object_name
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.grant import GrantBinding, ReleaseOrder
from trustauthority.model.placement import Purpose

AAD = b'{"format":"ta-vm-key-v1","keyEpoch":1,"provider":"default","vm":"vm-1"}'
RELEASE = ec.derive_private_key(78, ec.SECP256R1())
STORAGE = SoftwareStorage(ec.derive_private_key(77, ec.SECP256R1()))
PCRS = {
    # neither banks nor numbers in the order in which a sort would put them
    HashAlgorithm.SHA384: {7: b"\x37" * 48},
    HashAlgorithm.SHA256: {7: b"\x07" * 32, 0: b"\x01" * 32, 4: b"\x04" * 32},
}
COUNTERS = bytes.fromhex("0000000100000002")


def write_release_key(path: Path, key: ec.EllipticCurvePrivateKey = RELEASE) -> Path:
    """A release key in a file as the authority keeps it."""
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return path


def room_settings(kms: KmipSettings, release_key: Path, **changes: object) -> KeyRoomSettings:
    """A key room in front of one KMS; patient, because test machines are busy."""
    fields = {"providers": {"default": kms}, "release_key": release_key, "timeout_s": 60.0}
    return KeyRoomSettings(**(fields | changes))


def binding(**changes: object) -> GrantBinding:
    fields = {
        "vm_id": "vm-1",
        "host_id": "h-1",
        "storage_name": object_name(STORAGE.public),
        "grant_epoch": 3,
        "key_epoch": 1,
        "request_id": "r" * 16,
        "purpose": Purpose.RUN,
        "clock_bound": 1000,
    }
    return GrantBinding(**(fields | changes))


def release_order(kek_id: str, wrapped: bytes, **changes: object) -> ReleaseOrder:
    """Release ``wrapped`` to the host of ``STORAGE``."""
    fields = {
        "binding": binding(),
        "provider": "default",
        "kek_id": kek_id,
        "wrapped": wrapped,
        "aad": AAD,
        "storage_public": encode_public(STORAGE.public),
        "sealed_pcrs": PCRS,
        "counters": COUNTERS,
    }
    return ReleaseOrder(**(fields | changes))


def open_grant(wire: bytes) -> bytes:
    """What the agent of that host does with a grant; returns the VM key."""
    made = binding()
    asked = GrantRequest(
        vm_id=made.vm_id,
        host_id=made.host_id,
        storage_name=made.storage_name,
        request_id=made.request_id,
        purpose=str(made.purpose),
    )
    opened = open_key_grant(
        wire,
        asked=asked,
        release_keys=[RELEASE.public_key()],
        tpm=STORAGE,
        storage=STORAGE.key,
    )
    return bytes(opened)
