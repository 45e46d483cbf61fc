"""A host for tests of the agent: software keys behind the agent's TPM port, files in a folder.

``SoftwareTpmPort`` keeps promises of form (real ECDSA, real KeyGrant opening) and none of a TPM's
(it certifies and activates whatever it is asked to); those are tested on swtpm in tests/tpm.
"""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from hostagent import settings as agent_settings
from hostagent.daemon import Agent
from hostagent.enforcement import NoEnforcement
from hostagent.host import Host
from hostagent.identity import load_identity
from hostagent.keys import HostKeys
from hostagent.lease_model import VmAction
from hostagent.lease_store import LeaseStore
from hostagent.notify import Notifier
from hostagent.tpm import (
    Attested,
    BankSelection,
    Endorsement,
    EndorsementAlgorithm,
    Quoted,
    SavedObject,
    TpmClock,
)
from support.storage_key import SoftwareStorage
from trustauthority.codec.tpm import encode_public
from trustauthority.codec.tpm_key import public_from_key
from trustauthority.codec.tpm_public import object_name
from trustauthority.model.tpm import ObjectAttributes


class SoftwareTpmPort:
    """The agent's ``TpmPort`` in software."""

    def __init__(self) -> None:
        self.identity_key = ec.generate_private_key(ec.SECP256R1())
        self.storage = SoftwareStorage(ec.generate_private_key(ec.SECP256R1()))
        self.reset_count, self.restart_count = 3, 1
        self.signatures = 0
        self.certified: list[tuple[bytes, bytes]] = []
        self.quoted: list[tuple[tuple[BankSelection, ...], bytes]] = []
        self.reads_after_quote: list[str] = []
        self._lock = threading.Lock()
        self.in_use = False

    def keys(self) -> HostKeys:
        identity = public_from_key(
            self.identity_key.public_key(), attributes=ObjectAttributes.SIGN, scheme=None
        )
        ek = Endorsement(
            algorithm=EndorsementAlgorithm.P256,
            certificate=b"ek certificate\xff\xff",
            intermediates=(b"issuer",),
            key=_saved(b"ek public", b"ek name"),
        )
        return HostKeys(
            endorsement=ek,
            ak=_saved(b"ak public", b"ak name"),
            identity=_saved(encode_public(identity), object_name(identity)),
            storage=self.storage.key,
        )

    def certify(self, ak, key, qualifying_data):
        self.certified.append((key.name, qualifying_data))
        return Attested(attest=b"certify" + qualifying_data, signature=b"by " + ak.name)

    def activate_credential(self, endorsement, ak, blob, secret):
        return blob

    def quote(self, ak, selection, qualifying_data):
        self.quoted.append((selection, qualifying_data))
        return Quoted(attest=b"quote" + qualifying_data, signature=b"sig", pcr_values=b"values")

    def sign_digest(self, key, digest):
        with self._lock:
            self.signatures += 1
            return self.identity_key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))

    def active_banks(self):
        return (BankSelection(bank="sha256", indices=tuple(range(24))),)

    def read_clock(self):
        return TpmClock(
            clock=1000,
            reset_count=self.reset_count,
            restart_count=self.restart_count,
            safe=True,
        )

    def import_and_unseal(self, storage, sealed):
        return self.storage.import_and_unseal(storage, sealed)


class RecordingEnforcement:
    """Remembers what happened to VMs; fails as often as a test says."""

    name = "program"

    def __init__(self) -> None:
        self.acts: list[tuple[VmAction, str]] = []
        self.failures = 0
        self.armed = {}

    def arm(self, vm_id, at_ms):
        self.armed[vm_id] = at_ms

    async def act(self, action, vm_id, why):
        self.acts.append((action, vm_id))
        if self.failures:
            self.failures -= 1
            return False
        return True


@dataclass
class AgentWorld:
    """Folders, settings, and agents that use them one after the other."""

    root: Path
    authority: object
    tpm: SoftwareTpmPort = field(default_factory=SoftwareTpmPort)
    now_ms: int | None = None
    extra: str = ""

    def __post_init__(self) -> None:
        for name in ("state", "run"):
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
        (self.root / "ca.pem").write_bytes(self.authority.ca_pem)
        (self.root / "boot.log").write_bytes(b"boot log" * 40_000)
        (self.root / "ima.log").write_bytes(b"ima entry " * 60_000)
        self.enforcement = RecordingEnforcement()

    @property
    def config(self) -> Path:
        return write_config(self.root, self.authority, extra=self.extra)

    def host(self) -> Host:
        loaded = agent_settings.load(self.config)
        ca_pem, ca = agent_settings.pinned_ca(loaded.authority.ca_file)
        return Host(
            settings=loaded,
            tpm=self.tpm,
            keys=self.tpm.keys(),
            ca_pem=ca_pem,
            ca=ca,
            identity=load_identity(loaded.paths.state_dir),
        )

    def agent(self, clock_ms, *, boot_id="boot-1", enforce=True) -> Agent:
        return Agent(
            host=self.host(),
            store=LeaseStore(self.root / "run", boot_id),
            enforcement=self.enforcement if enforce else NoEnforcement(),
            clock_ms=clock_ms,
            notifier=Notifier(""),
        )


def write_config(root: Path, authority: object, *, tcti: str = "none", extra: str = "") -> Path:
    """A complete configuration over the folders of ``root``."""
    config = root / "hostagent.toml"
    config.write_text(
        f"""
[authority]
ca_file = "{root}/ca.pem"
enrol = "127.0.0.1:{authority.enrol_port}"
mtls = "127.0.0.1:{authority.mtls_port}"
[host]
name = "host-a"
cluster = "prod"
[tpm]
tcti = "{tcti}"
[paths]
state_dir = "{root}/state"
run_dir = "{root}/run"
boot_log = "{root}/boot.log"
ima_log = "{root}/ima.log"
userspace_log = "{root}/userspace.log"
[intervals]
call_timeout_ms = 5000
attest_timeout_ms = 10000
backoff_first_ms = 50
backoff_cap_ms = 400
{extra}
"""
    )
    config.chmod(0o600)
    return config


def _saved(public: bytes, name: bytes) -> SavedObject:
    def derive() -> None:
        raise AssertionError("a software key has no TPM to be loaded into")

    return SavedObject(public=public, name=name, context=None, derive=derive)
