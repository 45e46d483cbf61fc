"""Keep what the agent must remember of its TPM keys, and bring the keys up at start.

Stage: start-up of the agent. Trusts the state directory no more than the TPM lets it: the AK's blobs
are useless elsewhere, and a changed file only makes the TPM refuse. Guarantees that the same keys
come back after each restart, that a cleared or exchanged TPM is noticed by name, and that the file
is replaced whole or not at all (``hostagent.files``). Primary keys are not kept:
the TPM derives them again.
Source: docs/adr/0006-storage-parent-in-the-owner-hierarchy.md.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hostagent.files import BrokenState, check_folder, read_json, write_json
from hostagent.tpm import (
    Endorsement,
    EndorsementAlgorithm,
    HostTpm,
    KeyBlobs,
    SavedObject,
    StorageAlgorithm,
)

_FILE = "keys.json"
_FORMAT = 1


class KeyStateInvalid(Exception):
    """The state file can't be used: damaged or of another format."""


class TpmChanged(Exception):
    """The TPM makes other keys than at enrolment: it was cleared or exchanged. Enrol again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyState:
    """What one enrolment leaves on disk. Nothing in it is secret outside this TPM."""

    endorsement: str
    """EK algorithm (``EndorsementAlgorithm``)."""
    storage: str
    """Storage parent algorithm (``StorageAlgorithm``)."""
    ek_name: str
    """TPM names in hex, to notice a change."""
    identity_name: str
    storage_name: str
    ak_public: str
    """TPMT_PUBLIC in hex."""
    ak_private: str
    """Contents of TPM2B_PRIVATE in hex, encrypted by the TPM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKeys:
    """The four keys, ready for use."""

    endorsement: Endorsement
    ak: SavedObject
    identity: SavedObject
    storage: SavedObject


def open_keys(
    tpm: HostTpm,
    directory: Path,
    *,
    endorsement: EndorsementAlgorithm,
    storage: StorageAlgorithm = StorageAlgorithm.P256,
) -> HostKeys:
    """Bring up the keys kept in ``directory``, or make an AK and keep it there.

    Args:
        tpm: the host's TPM.
        directory: the agent's state directory; made when missing.
        endorsement: the EK to use when nothing is kept; what is kept goes first.
        storage: likewise.

    Raises:
        KeyStateInvalid: the file is damaged.
        InsecureFile: the file or the directory is accessible to others.
        TpmChanged: the TPM makes other keys than those kept.
        TpmError: the TPM refuses or fails.
    """
    kept = load_state(directory)
    if kept is None:
        return _first_start(tpm, directory, endorsement, storage)
    ek = tpm.endorsement(EndorsementAlgorithm(kept.endorsement))
    _same("EK", ek.key, kept.ek_name)
    identity = tpm.identity_key()
    _same("TLS identity", identity, kept.identity_name)
    parent = tpm.storage_parent(StorageAlgorithm(kept.storage))
    _same("storage parent", parent, kept.storage_name)
    blobs = KeyBlobs(public=bytes.fromhex(kept.ak_public), private=bytes.fromhex(kept.ak_private))
    ak = tpm.load_attestation_key(ek, blobs)
    return HostKeys(endorsement=ek, ak=ak, identity=identity, storage=parent)


def forget_keys(directory: Path) -> None:
    """Drop the kept AK, so that the next start makes new keys and must enrol again."""
    (directory / _FILE).unlink(missing_ok=True)


def load_state(directory: Path) -> KeyState | None:
    """What is kept in ``directory``, or None before the first start.

    Raises:
        KeyStateInvalid: the file is damaged or of another format.
        InsecureFile: it belongs to or is accessible to others.
    """
    path = directory / _FILE
    try:
        document = read_json(path)
    except BrokenState as failure:
        raise KeyStateInvalid(str(failure)) from failure
    return None if document is None else _decode(path, document)


def save_state(directory: Path, state: KeyState) -> None:
    """Replace what is kept, atomically and durably."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_folder(directory)
    write_json(directory / _FILE, {"format": _FORMAT} | asdict(state))


def _first_start(
    tpm: HostTpm,
    directory: Path,
    endorsement: EndorsementAlgorithm,
    storage: StorageAlgorithm,
) -> HostKeys:
    ek = tpm.endorsement(endorsement)
    blobs = tpm.create_attestation_key(ek)
    keys = HostKeys(
        endorsement=ek,
        ak=tpm.load_attestation_key(ek, blobs),
        identity=tpm.identity_key(),
        storage=tpm.storage_parent(storage),
    )
    state = KeyState(
        endorsement=endorsement,
        storage=storage,
        ek_name=ek.key.name.hex(),
        identity_name=keys.identity.name.hex(),
        storage_name=keys.storage.name.hex(),
        ak_public=blobs.public.hex(),
        ak_private=blobs.private.hex(),
    )
    save_state(directory, state)
    return keys


def _same(what: str, key: SavedObject, kept_name: str) -> None:
    if key.name.hex() != kept_name:
        raise TpmChanged(f"the TPM's {what} is not the enrolled one: was the TPM cleared?")


def _decode(path: Path, document: dict[str, Any]) -> KeyState:
    if document.pop("format", None) != _FORMAT:
        raise KeyStateInvalid(f"{path} is of another format")
    try:
        state = KeyState(**document)
        EndorsementAlgorithm(state.endorsement)
        StorageAlgorithm(state.storage)
        names = (state.ek_name, state.identity_name, state.storage_name)
        for value in (*names, state.ak_public, state.ak_private):
            bytes.fromhex(value)
    except (ValueError, TypeError) as failure:
        raise KeyStateInvalid(f"{path} is damaged: {failure}") from failure
    return state
