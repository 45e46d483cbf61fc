# ruff: noqa: D417 - options is documented by its class
"""``ta key import``: an existing passphrase becomes the key of a VM, sealed before it is sent."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.key_states import key_fields
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.render import STRONG, Marked
from trustauthority.cli.session import session


def import_key(
    vm: str,
    /,
    *,
    from_file: Annotated[Path, Parameter(name="--from-file")],
    provider: str = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Make an existing passphrase the key of a protected VM. It is sealed here, and opened in the key room only.

    Every byte of the file counts, a newline at its end too. Delete the file afterwards.

    Args:
        vm: Id of the VM.
        from_file: File (mode 600) with the passphrase, 1 to 4096 bytes.
        provider: Key provider; the cluster's default unless given.
        dry_run: Only show what would be sent, which is sealed.
    """
    from trustauthority.client.files import read_private
    from trustauthority.keyrelease.keyimport import seal_import
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    passphrase = read_private(from_file, "passphrase")
    with session(options) as ta:
        service = ta.authority.on(KeyAdministrationServiceStub)
        public = service.read(lambda s: s.GetImportKey, admin.GetImportKeyRequest()).public_key
        sealed = seal_import(passphrase, public, vm)
        request = admin.ImportKeyRequest(vm_id=vm, provider=provider, sealed_key=sealed)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        if passphrase.endswith(b"\n"):
            ta.screen.warn("the passphrase ends with a newline, which is part of it")
        key = service.write(lambda s: s.ImportKey, request).key
        title = Marked(text=f"VM {key.vm_id} has the imported key", style=STRONG)
        ta.screen.record(title, key_fields(ta, key), name=key.vm_id, data=key)
    return ExitCode.YES


def add_to(app: App) -> None:
    """Register this command with ``ta key``."""
    app.command(
        import_key,
        name="import",
        help_epilogue=examples(
            "ta key import payroll --from-file /root/payroll.luks",
            "ta key import payroll --from-file /root/payroll.luks --provider bao",
        ),
    )
