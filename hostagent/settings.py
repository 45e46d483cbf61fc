"""The agent's configuration: one frozen model, read once from a TOML file.

Stage: edge. Trusts nothing in the file. Guarantees that all problems are reported at once with
their TOML paths, that unknown keys are problems, and that the file and what it points to can't be
changed or (except certificates) read by others. Does not open the TPM or the network.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hostagent.files import InsecureFile, check_folder, read_private

_NAME = r"^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=_NAME)]
Address = Annotated[
    str, Field(pattern=r"^(?:unix:/.+|\[[0-9A-Fa-f:.]+\]:\d{1,5}|[^\s:/]+:\d{1,5})$")
]
Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]

DEFAULT_CONFIG = Path("/etc/trustauthority/hostagent.toml")
BOOT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
IMA_LOG = Path("/sys/kernel/security/ima/binary_runtime_measurements")
USERSPACE_LOG = Path("/run/log/systemd/tpm2-measure.log")


class ConfigurationInvalid(Exception):
    """The configuration has problems; the message has one line for each of them."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AuthoritySettings(_Section):
    """Where the authority is, and the one certificate by which it is known."""

    ca_file: Path
    """PEM with exactly the authority's CA certificate: pinned, never learned on first use."""
    enrol: Address
    """Enrolment listener (server-authenticated TLS)."""
    mtls: Address
    """Attestation role."""
    key: Address | None = None
    """Key role; ``mtls`` when not given."""
    placement: Address | None = None
    """Placement role; ``mtls`` when not given."""
    server_name: str | None = None
    """Name expected in the server certificate, when it is not that of the address."""

    @property
    def key_address(self) -> str:
        """Where keys and leases are asked for."""
        return self.key or self.mtls

    @property
    def placement_address(self) -> str:
        """Where moves are asked for."""
        return self.placement or self.mtls


class HostSettings(_Section):
    """Which host this is."""

    name: Name
    cluster: Name


class TpmSettings(_Section):
    """Where the TPM is and which EK stands for this host."""

    tcti: str = "device:/dev/tpmrm0"
    endorsement: str | None = None
    """EK algorithm as the TPM helper names it; by default the first one with a certificate."""
    storage: Literal["p256", "p384", "rsa2048", "rsa3072"] = "p256"
    """Algorithm of the storage parent, under which VM keys come in. Counts at the first enrolment and
    after ``enrol --new-keys``."""


class PathSettings(_Section):
    """Files of the agent and of the kernel."""

    state_dir: Path = Path("/var/lib/trustauthority-hostagent")
    run_dir: Path = Path("/run/trustauthority-hostagent")
    """Leases and the control socket: a file system that a reboot empties."""
    boot_log: Path = BOOT_LOG
    ima_log: Path = IMA_LOG
    userspace_log: Path = USERSPACE_LOG


class IntervalSettings(_Section):
    """Lengths of time, in milliseconds."""

    call_timeout_ms: Milliseconds = 10_000
    attest_timeout_ms: Milliseconds = 60_000
    answer_timeout_ms: Milliseconds = 15_000
    """How long a command about a VM waits before it says that there is no answer yet."""
    backoff_first_ms: Milliseconds = 500
    backoff_cap_ms: Milliseconds = 60_000
    admission_poll_ms: Milliseconds = 600_000
    """How often a host that waits for admission asks whether it was admitted."""


class EnforcementSettings(_Section):
    """What pauses and ends a VM whose lease is lost."""

    program: Path | None = None
    """Called as ``PROGRAM pause|resume|destroy VM``; exit 0 means that the VM is in that state
    now (one that is not there is destroyed). Without it VMs are left alone, and status says so."""
    program_timeout_ms: Milliseconds = 10_000


class LibvirtSettings(_Section):
    """libvirt on this host, and its hook."""

    uri: str | None = None
    """As for virsh, for example ``qemu:///system``. Without it the agent leaves libvirt alone."""
    timeout_ms: Milliseconds = 10_000
    """The longest that one virsh may take."""
    patience_ms: Milliseconds = 25_000
    """How long a start waits until this host is attested, when everything is powered on at once."""
    moves_by_order: bool = True
    """Carry out moves that schedulers order at the authority."""
    moves_at_once: Annotated[int, Field(ge=1, le=8)] = 2
    peer_uri: str = "qemu+tls://{host}/system"
    """The libvirt of another host, for ordered moves; ``{host}`` is its name at the authority."""
    peer_migrate_uri: str = ""
    """Where the memory goes, as for virsh migrate --migrateuri; ``{host}`` as above."""
    peer_tls: bool = True
    """Encrypt the memory on its way. It holds the key of the disk."""
    peer_unsafe: bool = False
    """As for virsh migrate --unsafe: libvirt does not take the disks for shared ones."""
    disk_folders: tuple[Path, ...] = (Path("/var/lib/libvirt/images"),)
    """Below which ``vm protect --new-disk`` may make files."""
    on_exposure: Literal["warn", "destroy"] = "warn"
    """What happens to a VM whose decrypted disk is copied to where it is not encrypted."""


class SecretSettings(_Section):
    """A shared secret that programs of this host may have; its name is the key of its section."""

    subject: Name | None = None
    """What the authority calls it; the name of the section when not given."""
    users: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    """User ids that may ask for it on ``run_dir/secrets.sock``."""
    volumes: tuple[str, ...] = ()
    """Volumes that systemd-cryptsetup unlocks with it, by their names in crypttab."""


class KubernetesSettings(_Section):
    """The KMS v2 plug-in of a control-plane host."""

    subject: Name | None = None
    """The shared secret from which it encrypts. Without it nothing listens."""
    socket: Path = Path("/run/trustauthority-hostagent/kms.sock")
    """Where kube-apiserver finds it; mode 0600."""


class Settings(BaseSettings):
    """The whole configuration. ``load`` is the way to make one."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    authority: AuthoritySettings
    host: HostSettings
    tpm: TpmSettings = TpmSettings()
    paths: PathSettings = PathSettings()
    intervals: IntervalSettings = IntervalSettings()
    enforcement: EnforcementSettings = EnforcementSettings()
    libvirt: LibvirtSettings = LibvirtSettings()
    secrets: dict[Name, SecretSettings] = Field(default_factory=dict)
    kubernetes: KubernetesSettings = KubernetesSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the file says: the environment must not redirect a host's trust."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        paths = {
            "authority.ca_file": self.authority.ca_file,
            **{f"paths.{key}": value for key, value in self.paths.__dict__.items()},
        }
        if self.enforcement.program is not None:
            paths["enforcement.program"] = self.enforcement.program
        paths["kubernetes.socket"] = self.kubernetes.socket
        volumes = [each for secret in self.secrets.values() for each in secret.volumes]
        if len(volumes) != len(set(volumes)):
            raise ValueError("secrets: a volume is unlocked by one secret")
        relative = [key for key, path in paths.items() if not path.is_absolute()]
        if self.enforcement.program is not None and self.libvirt.uri is not None:
            raise ValueError("enforcement.program and libvirt.uri exclude each other")
        if relative:
            raise ValueError(f"not an absolute path: {', '.join(relative)}")
        return self


def load(path: Path) -> Settings:
    """Read and check the configuration.

    Raises:
        ConfigurationInvalid: all problems of the contents.
        InsecureFile: the file can be read or written by others.
        OSError: it can't be read.
    """
    try:
        document: dict[str, Any] = tomllib.loads(read_private(path).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as failure:
        raise ConfigurationInvalid(f"{path}: not TOML: {failure}") from failure
    try:
        settings = Settings(**document)
    except ValidationError as failure:
        problems = "\n".join(
            f"{path}: {'.'.join(map(str, error['loc'])) or 'file'}: {error['msg']}"
            for error in failure.errors(include_url=False, include_input=False)
        )
        raise ConfigurationInvalid(problems) from failure
    problems = "\n".join(_file_problems(settings))
    if problems:
        raise ConfigurationInvalid(problems)
    return settings


def pinned_ca(path: Path) -> tuple[bytes, x509.Certificate]:
    """The authority's CA: PEM for TLS, and the certificate for the binding of an enrolment.

    Raises ConfigurationInvalid when the file does not hold exactly one certificate.
    """
    try:
        found = x509.load_pem_x509_certificates(read_private(path, others_may_read=True))
    except ValueError as failure:
        raise ConfigurationInvalid(f"{path}: no PEM certificate: {failure}") from failure
    if len(found) != 1:
        raise ConfigurationInvalid(f"{path}: {len(found)} certificates, exactly one is pinned")
    return found[0].public_bytes(Encoding.PEM), found[0]


def _file_problems(settings: Settings) -> list[str]:
    problems = []
    try:
        pinned_ca(settings.authority.ca_file)
    except (OSError, InsecureFile, ConfigurationInvalid) as failure:
        problems.append(f"authority.ca_file: {failure}")
    for key, folder in (
        ("state_dir", settings.paths.state_dir),
        ("run_dir", settings.paths.run_dir),
    ):
        try:
            check_folder(folder)
        except FileNotFoundError:
            problems.append(f"paths.{key}: {folder} is absent: create it with mode 0700")
        except (OSError, InsecureFile) as failure:
            problems.append(f"paths.{key}: {failure}")
    problems += [
        f"libvirt.disk_folders: {folder} is not absolute"
        for folder in settings.libvirt.disk_folders
        if not folder.is_absolute()
    ]
    return problems
