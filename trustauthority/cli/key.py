# ruff: noqa: D417 - options is documented by its class
"""``ta key``: records of VM keys and who received each. Never the keys."""

from typing import TYPE_CHECKING

from cyclopts import App

from trustauthority.cli import key_holders, key_import, key_rewrap, key_roll, key_states
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.key_break_glass import break_glass_app
from trustauthority.cli.key_drill import drill_app
from trustauthority.cli.key_escrow import escrow_app, recover
from trustauthority.cli.key_provider import provider_app
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.paging import all_pages
from trustauthority.cli.render import STRONG, Column, Field, Marked
from trustauthority.cli.session import session
from trustauthority.cli.text import absolute, ago, count, moment
from trustauthority.client.plain import plain, word

if TYPE_CHECKING:
    from trustauthority.v1.keyprovider_pb2 import VmKey

app = App(name="key", help="VM keys: their records, and who received each. Never the keys.")
key_states.add_to(app)
key_rewrap.add_to(app)
key_holders.add_to(app)
key_import.add_to(app)
key_roll.add_to(app)
app.command(provider_app)
app.command(escrow_app)
app.command(drill_app)
app.command(break_glass_app)
app.command(
    recover,
    help_epilogue=examples(
        "ta key recover payroll --escrow escrow.json --private escrow.key "
        "--passphrase-file pass --out /dev/shm/payroll --form disk",
        "ta key recover payroll --epoch 1 --escrow escrow.json --private escrow.key "
        "--passphrase-file pass --out /dev/shm/payroll",
    ),
)


@app.command(
    help_epilogue=examples("ta key create payroll", "ta key create payroll --provider kmip-1")
)
def create(
    vm: str, /, *, provider: str = "", dry_run: DryRun = False, options: Options = DEFAULTS
) -> ExitCode:
    """Make the key of a protected VM, wrapped by a key provider.

    Args:
        vm: Id of the VM.
        provider: Key provider; the default one unless given.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import KeyProviderServiceStub

    with session(options) as ta:
        request = keys.CreateKeyRequest(vm_id=vm, provider=provider)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        key = ta.authority.on(KeyProviderServiceStub).write(lambda s: s.CreateKey, request).key
        fields = [
            *key_states.key_fields(ta, key),
            Field("next", f"ta placement intent --vm {key.vm_id} --host HOST"),
        ]
        title = Marked(text=f"VM {key.vm_id} has a key", style=STRONG)
        ta.screen.record(title, fields, name=key.vm_id, data=key)
    return ExitCode.YES


@app.command(name="list", help_epilogue=examples("ta key list", "ta key list -o wide"))
def list_keys(*, options: Options = DEFAULTS) -> ExitCode:
    """List VM keys and their states."""
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import KeyProviderServiceStub

    with session(options) as ta:
        service = ta.authority.on(KeyProviderServiceStub)
        rows: list[VmKey] = list(
            all_pages(
                lambda token: service.read(
                    lambda s: s.ListKeys, keys.ListKeysRequest(page_size=500, page_token=token)
                ),
                lambda page: page.keys,
            )
        )
        ta.screen.listing(
            rows,
            _COLUMNS,
            header=ta.scope(count(len(rows), "VM key")),
            empty="No VM has a key. Make one: ta key create VM",
            name=lambda key: key.vm_id,
        )
    return ExitCode.YES


@app.command(help_epilogue=examples("ta key show payroll", "ta key show payroll -o json"))
def show(vm: str, /, *, options: Options = DEFAULTS) -> ExitCode:
    """Show a VM's key record and which hosts received the key, newest first.

    Args:
        vm: Id of the VM.
    """
    from trustauthority.v1 import keyprovider_pb2 as keys
    from trustauthority.v1.keyprovider_pb2_grpc import KeyProviderServiceStub

    with session(options) as ta:
        request = keys.GetKeyRequest(vm_id=vm)
        reply = ta.authority.on(KeyProviderServiceStub).read(lambda s: s.GetKey, request)
        if ta.screen.for_machines:
            ta.screen.machine(plain(reply), names=[reply.key.vm_id])
            return ExitCode.YES
        ta.screen.line(Marked(text=reply.key.vm_id, style=STRONG))
        ta.screen.fields(key_states.key_fields(ta, reply.key))
        ta.screen.fields(Field("release policy", line) for line in reply.release_policy)
        if len(reply.epochs) > 1:
            ta.screen.line(f"{count(len(reply.epochs), 'key')} so far, newest first")
            ta.screen.table(
                ["KEY EPOCH", "STATE", "SINCE", "PROVIDER"],
                [
                    [str(key.key_epoch), word(key, "state"), since(key), key.provider]
                    for key in reply.epochs
                ],
            )
        if not reply.releases:
            ta.screen.line("No host ever received this key.")
            return ExitCode.YES
        ta.screen.line(f"{count(len(reply.releases), 'release')}, newest first")
        ta.screen.table(
            ["HOST", "EPOCH", "AGO", "AT", "HOST ID"],
            [
                [
                    release.host_name,
                    str(release.grant_epoch),
                    ago(moment(release.released_at), ta.now),
                    absolute(moment(release.released_at)),
                    release.host_id,
                ]
                for release in reply.releases
            ],
        )
    return ExitCode.YES


def since(key: "VmKey") -> str:
    """When it came into its state."""
    return absolute(moment(key.changed_at))


_COLUMNS: "list[Column[VmKey]]" = [
    Column("VM", lambda key: key.vm_id),
    Column("STATE", lambda key: word(key, "state")),
    Column("KEY EPOCH", lambda key: str(key.key_epoch)),
    Column("PROVIDER", lambda key: key.provider),
    Column("CREATED", lambda key: absolute(moment(key.created_at))),
    Column("DESTROYED AT", lambda key: absolute(moment(key.destroy_at)), wide=True),
    Column("SINCE", since, wide=True),
    Column("KEK", lambda key: key.kek_id, wide=True),
    Column("BY", lambda key: key.created_by, wide=True),
]
