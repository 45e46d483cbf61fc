"""The ``trustauthority`` command: init, serve, backup, restore, config."""

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from trustauthority.errors import ConfigurationInvalid, TrustAuthorityError
from trustauthority.main.gateway import gateway_app
from trustauthority.settings import DEFAULT_CONFIG, KmipProvider, ListenSettings, Settings

VERSION = "0.1.0"
app = cyclopts.App(
    name="trustauthority",
    version=VERSION,
    help="Decide which hypervisor hosts may hold the keys of encrypted VMs.",
)
Config = Annotated[Path, Parameter(name="--config", help="Configuration file.")]


def main() -> None:
    """Run the command; our own errors end with one line and a code, never with a trace."""
    try:
        app()
    except TrustAuthorityError as error:
        sys.stderr.write(f"trustauthority: {error.message}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@app.command
def init(
    *,
    state: Path,
    config: Config = DEFAULT_CONFIG,
    origin: str = "trustauthority.local",
    node: str = "ta-1",
    server_name: tuple[str, ...] = ("localhost", "127.0.0.1"),
    admin: str = "admin",
    identity_dir: Path | None = None,
    enrol: str = "127.0.0.1:7441",
    mutual: str = "127.0.0.1:7442",
    key: str = "127.0.0.1:7443",
    admin_listener: str = "",
    escrow_public: Path | None = None,
    no_escrow: Annotated[bool, Parameter(negative="")] = False,
    kmip_host: str = "",
    kmip_port: int = 5696,
    kmip_ca: Path | None = None,
    kmip_certificate: Path | None = None,
    kmip_key: Path | None = None,
) -> None:
    """Set up a new authority: CAs, keys, database, configuration, and a first identity for ta.

    Nothing that exists is replaced.

    Parameters
    ----------
    state: Folder for the database and the keys; it must not hold an authority yet.
    config: Configuration file to write.
    origin: Name of this authority: issuer of reports, origin of the audit log.
    node: Name of this node.
    server_name: DNS names and addresses of the servers' certificates.
    admin: Name of the first identity. It holds every role: issue narrower ones and revoke it.
    identity_dir: Where the first identity's files and the context for ta go; STATE/identity.
    enrol: Address of the enrolment listener.
    mutual: Address of the mutual-TLS listener.
    key: Address of the key role's listener.
    admin_listener: Address for an admin role that runs as a process of its own; ta is pointed at it.
    escrow_public: Public escrow key, of ta key escrow keygen: every VM key is sealed to it besides.
    no_escrow: Seal VM keys to no offline key. Whoever loses the KMS then loses every VM.
    kmip_host: Host of a KMIP server for the provider "default".
    kmip_port: Its port.
    kmip_ca: CA certificate of the KMIP server.
    kmip_certificate: Our client certificate for it.
    kmip_key: The key of that certificate.
    """
    from trustauthority.main.escrow import chosen_key
    from trustauthority.main.initialise import InitPlan, initialise

    escrow = chosen_key(escrow_public, none=no_escrow)
    providers: dict[str, Any] = {}
    if kmip_host:
        if kmip_ca is None or kmip_certificate is None or kmip_key is None:
            raise ConfigurationInvalid(
                "--kmip-host needs --kmip-ca, --kmip-certificate and --kmip-key", field="kmip"
            )
        for path in (kmip_ca, kmip_certificate, kmip_key):
            if not path.is_file():
                raise ConfigurationInvalid(f"{path} is not there", path=str(path))
        providers["default"] = KmipProvider(
            kind="kmip",
            host=kmip_host,
            port=kmip_port,
            ca=kmip_ca.absolute(),
            certificate=kmip_certificate.absolute(),
            key=kmip_key.absolute(),
        )
    settings = Settings.model_validate(
        {
            "state_dir": state.absolute(),
            "node": node,
            "origin": origin,
            "listen": ListenSettings(
                enrol=enrol, mutual=mutual, key=key, admin=admin_listener or "127.0.0.1:7444"
            ),
            "key": {
                "providers": providers,
                "escrow": "none" if escrow is None else escrow.key_id.hex(),
            },
        }
    )
    folder = (identity_dir or state / "identity").absolute()
    _run(
        initialise(
            InitPlan(
                settings=settings,
                config=config,
                server_names=server_name,
                admin=admin,
                identity_dir=folder,
                server=admin_listener or mutual,
                escrow=escrow,
            )
        )
    )
    sys.stdout.write(
        f"authority {origin} is set up in {state}\n"
        f"start it:      trustauthority serve --config {config} --roles attest,placement,admin\n"
        f"and the keys:  trustauthority serve --config {config} --roles key\n"
        f"look at it:    TA_CONTEXTS_FILE={folder / 'contexts.toml'} ta status\n"
        f"hosts pin:     {folder / 'authority-ca.crt'}\n"
        f"escrow:        {'NONE' if escrow is None else 'to offline key ' + escrow.key_id.hex()}\n"
    )
    if escrow is None:
        sys.stderr.write(
            "trustauthority: VM keys are sealed to no offline key: whoever loses the KMS loses"
            " every VM\n"
        )


@app.command
def serve(*, roles: str, config: Config = DEFAULT_CONFIG) -> None:
    """Serve roles until SIGTERM; then finish what is running and stop.

    Parameters
    ----------
    roles: Comma-separated: attest, key, placement, admin.
    config: Configuration file.
    """
    import trustauthority.rpc  # noqa: F401 - sets the TLS version before gRPC is first imported
    from trustauthority.main.serve import parse_roles, serve_roles
    from trustauthority.settings import load_settings

    _run(serve_roles(load_settings(config), parse_roles(roles)))


@app.command
def backup(out: Path, *, passphrase_file: Path, config: Config = DEFAULT_CONFIG) -> None:
    """Write an encrypted backup of database, CAs and signing keys.

    It holds VM keys as the KMS's KEK wrapped them, and as they were sealed to the offline escrow key.

    Parameters
    ----------
    out: File to write.
    passphrase_file: File (mode 600) whose first line encrypts the backup.
    config: Configuration file.
    """
    from trustauthority.main.backup import write_backup
    from trustauthority.settings import load_settings

    for line in write_backup(load_settings(config), config, out, passphrase_file):
        sys.stdout.write(line + "\n")


@app.command
def escrow_key(
    public: Path | None = None,
    *,
    config: Config = DEFAULT_CONFIG,
    none: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show the offline key to which VM keys are sealed, or replace it.

    Stop the key role before, start it after, and run ta key escrow reseal: until then old VM keys open
    with the old private key only.

    Parameters
    ----------
    public: Public key to use from now on, of ta key escrow keygen.
    config: Configuration file.
    none: Seal VM keys to no offline key from now on.
    """
    from trustauthority.main.escrow import chosen_key, replace_key
    from trustauthority.settings import load_settings

    settings = load_settings(config)
    if public is None and not none:
        sys.stdout.write(f"{settings.key.escrow}\n")
        return
    _run(replace_key(settings, config, chosen_key(public, none=none)))
    sys.stdout.write("replaced; start the key role, then: ta key escrow reseal\n")


@app.command
def escrow_extract(source: Path, out: Path, *, passphrase_file: Path) -> None:
    """Take the escrowed VM keys out of a backup, for ta key recover. Needs no authority.

    Parameters
    ----------
    source: The backup.
    out: File to write.
    passphrase_file: File (mode 600) with the passphrase of the backup.
    """
    from trustauthority.main.escrow import extract

    for line in extract(source, out, passphrase_file):
        sys.stdout.write(line + "\n")


@app.command
def restore(
    source: Path,
    *,
    passphrase_file: Path,
    state: Path,
    config: Config = DEFAULT_CONFIG,
    tombstones: Path | None = None,
) -> None:
    """Restore a backup into an empty state folder.

    Every verdict is void afterwards and no VM changes its owner before the longest fence. Keys that
    were destroyed since the backup come back, unless the lost authority's file of tombstones is given.

    Parameters
    ----------
    source: The backup.
    passphrase_file: File (mode 600) with the passphrase of the backup.
    state: Folder to restore into; it must not hold an authority.
    config: Configuration file to write.
    tombstones: The file of this name in the state folder of the lost authority, if it could be saved.
    """
    from trustauthority.main.backup import read_backup

    destroyed = asyncio.run(
        read_backup(source, passphrase_file, state.absolute(), config, tombstones=tombstones)
    )
    sys.stdout.write(f"restored into {state}; hosts must attest anew\n")
    if tombstones is None:
        sys.stdout.write(
            "VM keys that were destroyed since the backup are back: destroy them again, "
            "see docs/how-to/rotate-keys.md\n"
        )
    else:
        sys.stdout.write(f"VM keys that had a tombstone and stay destroyed: {destroyed}\n")


@app.command
def accept_loss(*, config: Config = DEFAULT_CONFIG, yes: bool = False) -> None:
    """Go on after a rollback of the database was detected.

    Decisions after the restored state are lost for good: who got which key since is not in the audit
    log any more. Every verdict is void and no VM changes its owner before the longest fence.

    Parameters
    ----------
    config: Configuration file.
    yes: Needed, since this can't be undone.
    """
    from trustauthority.main.backup import accept_loss as accept
    from trustauthority.settings import load_settings

    if not yes:
        sys.stderr.write("trustauthority: this can't be undone; repeat with --yes\n")
        sys.exit(2)
    destroyed = asyncio.run(accept(load_settings(config)))
    sys.stdout.write("accepted; hosts must attest anew\n")
    sys.stdout.write(f"VM keys that had a tombstone and stay destroyed: {destroyed}\n")


@app.command
def renew_certificates(*, config: Config = DEFAULT_CONFIG) -> None:
    """Make new server certificates; hosts and people notice nothing, since they pin the CA.

    Parameters
    ----------
    config: Configuration file.
    """
    from trustauthority.main.certificates import renew_certificates as renew
    from trustauthority.settings import load_settings

    for line in renew(load_settings(config)):
        sys.stdout.write(line + "\n")
    sys.stdout.write("restart the processes to use them\n")


app.command(gateway_app)
config_app = cyclopts.App(name="config", help="The configuration file.")
app.command(config_app)


@config_app.command
def validate(file: Path = DEFAULT_CONFIG) -> None:
    """Check a configuration file and name every problem.

    Parameters
    ----------
    file: Configuration file.
    """
    from trustauthority.settings import load_settings

    load_settings(file)
    sys.stdout.write(f"{file} is valid\n")
