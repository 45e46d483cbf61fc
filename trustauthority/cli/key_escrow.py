# ruff: noqa: D417 - options is documented by its class
"""``ta key escrow`` and ``ta key recover``: VM keys that survive the loss of authority and KMS.

``keygen`` and ``recover`` work offline, on a machine that never was on a network. The private
key and VM keys go from file to file; nothing secret is printed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, Options
from trustauthority.cli.render import STRONG, Field, Marked
from trustauthority.cli.session import screen_for, session
from trustauthority.cli.text import count

escrow_app = App(
    name="escrow", help="VM keys sealed to an offline key, for the day of the disaster."
)
Page = TypeVar("Page", bound=Any)
PassphraseFile = Annotated[Path, Parameter(name="--passphrase-file")]


@escrow_app.command(
    help_epilogue=examples(
        "ta key escrow keygen --private escrow.key --public escrow.pub --passphrase-file pass",
        "ta key escrow keygen --private e2.key --public e2.pub --passphrase-file p2 -o name",
    )
)
def keygen(
    *, private: Path, public: Path, passphrase_file: PassphraseFile, options: Options = DEFAULTS
) -> ExitCode:
    """Make the offline escrow key. Run it on a machine without a network.

    The public half goes to trustauthority init --escrow-public. Whoever has the private half and its passphrase
    can open the key of every VM; without both, nobody can.

    Args:
        private: File to write the private key to, encrypted with the passphrase, mode 0600.
        public: File to write the public key to.
        passphrase_file: File (mode 600) whose first line, 12 characters or more, encrypts it.
    """
    from trustauthority.cli import escrow_files as files
    from trustauthority.keyrelease.escrow import encode_escrow_key, public_of

    passphrase = files.read_passphrase(passphrase_file)
    made = files.new_private_key()
    key = public_of(made)
    files.write_new(private, files.encrypt_private_key(made, passphrase).encode())
    files.write_new(public, encode_escrow_key(key).encode())
    public.chmod(0o644)
    screen = screen_for(options)
    fields = [
        Field("key id", key.key_id.hex()),
        Field("private", f"{private}: keep it offline, in two places, apart from the passphrase"),
        Field("public", str(public)),
        Field("next", f"trustauthority init --escrow-public {public} …"),
    ]
    title = Marked(text="Escrow key made", style=STRONG)
    screen.record(title, fields, name=key.key_id.hex(), data={"keyId": key.key_id.hex()})
    return ExitCode.YES


@escrow_app.command(
    help_epilogue=examples(
        "ta key escrow export --out escrow.json", "ta key escrow export --out escrow.json -o json"
    )
)
def export(*, out: Path, options: Options = DEFAULTS) -> ExitCode:
    """Write all escrowed keys to one file, for ta key recover. It opens with the offline key only.

    Args:
        out: File to write, mode 0600; it must not exist.
    """
    from trustauthority.cli import escrow_files as files
    from trustauthority.keyrelease.escrow_export import ExportedKey, encode_export
    from trustauthority.model.identifiers import VmId
    from trustauthority.v1 import escrow_pb2 as pb
    from trustauthority.v1.escrow_pb2_grpc import EscrowServiceStub

    with session(options) as ta:
        service = ta.authority.on(EscrowServiceStub)
        pages = list(
            pages_of(
                lambda token: service.read(
                    lambda s: s.ExportEscrow,
                    pb.ExportEscrowRequest(page_size=100, page_token=token),
                )
            )
        )
        keys = [
            ExportedKey(
                vm_id=VmId(key.vm_id), key_epoch=key.key_epoch, state=key.state, blob=key.blob
            )
            for page in pages
            for key in page.keys
        ]
        files.write_new(out, encode_export(pages[0].origin, keys))
        missing = [vm for page in pages for vm in page.missing]
        for vm in missing:
            ta.screen.warn(f"the key of VM {vm} is not escrowed: ta key escrow reseal")
        ta.done(
            f"wrote {out}: {count(len(keys), 'escrowed key')}",
            {"file": str(out), "keys": len(keys), "missing": missing},
            name=str(out),
        )
    return ExitCode.YES


@escrow_app.command(
    help_epilogue=examples("ta key escrow reseal", "ta key escrow reseal --timeout 60s")
)
def reseal(*, options: Options = DEFAULTS) -> ExitCode:
    """Seal every VM key that is sealed to no or another escrow key to the one of today.

    It may be interrupted and repeated; keys that are sealed already stay as they are. Exits 1 when
    some could not be sealed.
    """
    from trustauthority.v1 import escrow_pb2 as pb
    from trustauthority.v1.escrow_pb2_grpc import EscrowServiceStub

    resealed, current, failed = 0, 0, list[str]()
    with session(options) as ta:
        service = ta.authority.on(EscrowServiceStub)
        for page in pages_of(
            lambda token: service.write(
                lambda s: s.ResealEscrow, pb.ResealEscrowRequest(page_size=10, page_token=token)
            )
        ):
            resealed, current = resealed + page.resealed, current + page.current
            failed += page.failed
            ta.screen.say(f"{resealed} sealed, {current} were, {len(failed)} failed")
        for why in failed:
            ta.screen.warn(why)
        ta.done(
            f"{count(resealed, 'key')} sealed to the escrow key of today, {current} were before",
            {"resealed": resealed, "current": current, "failed": failed},
        )
    return ExitCode.NO if failed else ExitCode.YES


def pages_of(fetch: Callable[[str], Page]) -> Iterator[Page]:
    """Replies until one says that it is the last."""
    token = ""
    while True:
        page = fetch(token)
        yield page
        token = page.next_page_token
        if not token:
            return


Form = Literal["key", "disk", "vtpm"]


def recover(
    vm: str,
    /,
    *,
    escrow: Path,
    private: Path,
    passphrase_file: PassphraseFile,
    out: Path,
    form: Form = "key",
    epoch: int = 0,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Open the escrowed key of a VM with the offline private key. Needs no authority and no network.

    The disk then opens with: cryptsetup luksOpen --key-file OUT, or qemu-img --object secret,file=OUT.

    Args:
        vm: Id of the VM.
        escrow: Escrowed keys: from ta key escrow export, or from a backup.
        private: The offline private key.
        passphrase_file: File (mode 600) with its passphrase.
        out: File to write, mode 0600; it must not exist.
        form: key as it is, or the passphrase derived from it for the disks or the vTPM.
        epoch: Key epoch; the newest in the file unless given.
    """
    from trustauthority.cli import escrow_files as files
    from trustauthority.keyrelease.escrow import disk_passphrase, open_escrowed, vtpm_passphrase
    from trustauthority.keyrelease.escrow_export import decode_export

    export = decode_export(files.read_large(escrow, "escrow"))
    wanted = export.find(vm, epoch)
    with files.private_key(private, passphrase_file) as opener:
        key = open_escrowed(wanted.blob, opener, expected=export.binding(wanted))
    try:
        derive = {"disk": disk_passphrase, "vtpm": vtpm_passphrase}
        files.write_new(out, derive[form](key, vm) if form in derive else bytes(key))
    finally:
        key[:] = bytes(len(key))
    screen = screen_for(options)
    fields = [
        Field("written", f"{out} ({form}, mode 0600): wipe it when you are done"),
        Field("key epoch", str(wanted.key_epoch)),
        Field("state", wanted.state),
    ]
    title = Marked(text=f"Key of VM {vm} recovered", style=STRONG)
    data = {"vm": vm, "keyEpoch": wanted.key_epoch, "state": wanted.state, "form": form}
    screen.record(title, fields, name=vm, data=data)
    return ExitCode.YES
