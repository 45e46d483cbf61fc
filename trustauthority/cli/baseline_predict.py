# ruff: noqa: D417 - options is documented by its class
"""``ta baseline predict``: approve an update before the first host boots it."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, ClusterName, DryRun, Options
from trustauthority.cli.render import STRONG, Field, Marked
from trustauthority.cli.session import session
from trustauthority.errors import InvalidRequest, MalformedEvidence

if TYPE_CHECKING:
    from trustauthority.codec.pe import PeImage
    from trustauthority.v1.admin_pb2 import FileDigests, UpdatedFile

BANKS = ("sha256", "sha384", "sha512")
MAX_FILE_BYTES = 2 * 1024**3
Replace = Annotated[
    tuple[str, ...], Parameter(name="--replace", negative="", consume_multiple=False)
]


def predict(
    name: str,
    /,
    *,
    host: str = "",
    base: Annotated[str, Parameter(name="--from")] = "",
    replace: Replace = (),
    command_line: str = "",
    cluster: ClusterName = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Say what an announced update will measure, and propose it; it counts only when approved.

    Starts from a host's newest boot or from known variants, and puts the hashes of new files in their places. The
    files stay here: only their hashes are sent. Signers and the order of measurements are taken as
    they were; what can't be explained is refused.

    Args:
        name: Name of the new variants.
        host: Start from the newest boot of this host.
        base: Start from the variants of this name.
        replace: ROLE=FILE, may be repeated: kernel (also a unified kernel image), initrd, boot-loader, shim, or
            the path by which GRUB reads the file.
        command_line: The new kernel command line, without the kernel's path.
        cluster: The cluster.
        dry_run: Only say what would be measured.
    """
    from trustauthority.cli.baseline import proposal_fields
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    files = [_updated(each) for each in replace]
    with session(options) as ta:
        request = admin.PredictBaselineRequest(
            cluster=ta.cluster(cluster),
            name=name,
            host=host,
            base=base,
            files=files,
            command_line=command_line,
            dry_run=dry_run,
        )
        reply = ta.authority.on(ClusterServiceStub).write(lambda s: s.PredictBaseline, request)
        verb = "would be" if dry_run else "is"
        fields = proposal_fields(ta, name, None, reply.baselines, sha256=reply.sha256)
        values = [Field(f"PCR {pcr.index} {reply.bank}", pcr.value) for pcr in reply.pcrs]
        ta.screen.record(
            Marked(text=f"baseline {name} {verb} proposed", style=STRONG),
            [*fields[: -1 if dry_run else None], *values],
            name=name,
            data=reply,
        )
    return ExitCode.YES


def _updated(argument: str) -> "UpdatedFile":
    """The digests of one ROLE=FILE."""
    from trustauthority.v1 import admin_pb2 as admin

    role, sign, path = argument.partition("=")
    if not role or not sign or not path:
        raise InvalidRequest("--replace ROLE=FILE, such as kernel=/boot/vmlinuz", field="replace")
    try:
        size = Path(path).stat().st_size
        if size > MAX_FILE_BYTES:
            raise InvalidRequest(f"{path} has more than 2 GiB", field="replace")
        content = Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}", field="replace") from error
    return admin.UpdatedFile(role=role, digests=[_digests(bank, content) for bank in BANKS])


def _digests(bank: str, content: bytes) -> "FileDigests":
    from trustauthority.codec.pe import decode_pe
    from trustauthority.v1 import admin_pb2 as admin

    whole = hashlib.new(bank, content).digest()
    try:
        image = decode_pe(content)
    except MalformedEvidence:
        return admin.FileDigests(bank=bank, file=whole)
    return admin.FileDigests(
        bank=bank,
        file=whole,
        image=image.image_hash(hashlib.new(bank)),
        sections=[
            admin.SectionDigest(section=name, digest=hashlib.new(bank, found).digest())
            for name in dict.fromkeys(section.name for section in image.sections)
            if name.startswith(".") and (found := image.section(name)) is not None
        ],
        load_options=_load_options(bank, image),
    )


def _load_options(bank: str, image: "PeImage") -> bytes:
    """The command line of a unified image as its stub passes it on: UTF-16 with a final NUL."""
    line = image.section(".cmdline")
    if line is None:
        return b""
    text = line.rstrip(b"\0").decode("utf-8", "replace")
    return hashlib.new(bank, text.encode("utf-16-le") + b"\0\0").digest()


def add_to(app: App) -> None:
    """Add the command."""
    app.command(
        help_epilogue=examples(
            "ta baseline predict kernel-6.1.0-28 --host esx-a01"
            " --replace kernel=vmlinuz-6.1.0-28 --replace initrd=initrd.img-6.1.0-28",
            'ta baseline predict quiet --from r640-2.19 --command-line "root=UUID=… ro quiet"'
            ' --replace "(hd0,gpt1)/EFI/debian/grub.cfg=grub.cfg" --dry-run',
        )
    )(predict)
