# ruff: noqa: D417 - options is documented by its class
"""``ta key drill``: proof that the offline key would open a VM, without showing the VM's key.

``begin`` and ``record`` talk to the authority; ``answer`` runs offline, with the private key.
"""

from pathlib import Path

from cyclopts import App

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.key_escrow import PassphraseFile
from trustauthority.cli.options import DEFAULTS, Options
from trustauthority.cli.render import STRONG, Field, Marked
from trustauthority.cli.session import screen_for, session
from trustauthority.errors import InvalidRequest

drill_app = App(name="drill", help="Prove that the offline escrow key would open a VM.")


@drill_app.command(
    help_epilogue=examples(
        "ta key drill begin payroll --out drill.json",
        "ta key drill begin payroll --out /media/usb/drill.json -o json",
    )
)
def begin(vm: str, /, *, out: Path, options: Options = DEFAULTS) -> ExitCode:
    """Begin a drill: write the question to take to the offline machine.

    Args:
        vm: Id of the VM.
        out: File to write.
    """
    from trustauthority.cli import escrow_files as files
    from trustauthority.keyrelease.escrow_export import Drill, encode_drill
    from trustauthority.model.escrow import EscrowBinding
    from trustauthority.model.identifiers import VmId
    from trustauthority.v1 import escrow_pb2 as pb
    from trustauthority.v1.escrow_pb2_grpc import EscrowServiceStub

    with session(options) as ta:
        request = pb.BeginDrillRequest(vm_id=vm)
        reply = ta.authority.on(EscrowServiceStub).write(lambda s: s.BeginDrill, request)
        drill = Drill(
            binding=EscrowBinding(origin=reply.origin, vm_id=VmId(vm), key_epoch=reply.key_epoch),
            challenge=reply.challenge,
            blob=reply.blob,
        )
        files.write_new(out, encode_drill(drill))
        ta.done(
            f"wrote {out}; offline: ta key drill answer {out} --private KEY --passphrase-file PASS",
            {"vm": vm, "keyEpoch": reply.key_epoch, "file": str(out)},
            name=vm,
        )
    return ExitCode.YES


@drill_app.command(
    help_epilogue=examples(
        "ta key drill answer drill.json --private escrow.key --passphrase-file pass",
        "ta key drill answer drill.json --private escrow.key --passphrase-file pass -o name",
    )
)
def answer(
    drill: Path, /, *, private: Path, passphrase_file: PassphraseFile, options: Options = DEFAULTS
) -> ExitCode:
    """Answer a drill with the offline private key. Needs no authority and no network.

    The answer is 32 digits, to be typed in at ta key drill record; it shows nothing of the key.

    Args:
        drill: File of ta key drill begin.
        private: The offline private key.
        passphrase_file: File (mode 600) with its passphrase.
    """
    from trustauthority.cli import escrow_files as files
    from trustauthority.keyrelease.escrow import drill_answer, open_escrowed
    from trustauthority.keyrelease.escrow_export import decode_drill

    asked = decode_drill(files.read_large(drill, "drill"))
    with files.private_key(private, passphrase_file) as opener:
        key = open_escrowed(asked.blob, opener, expected=asked.binding)
    try:
        code = drill_answer(key, asked.binding, asked.challenge).hex()
    finally:
        key[:] = bytes(len(key))
    fields = [
        Field("answer", code),
        Field("next", f"ta key drill record {drill} --answer {code}"),
    ]
    title = Marked(text=f"The escrow key opens VM {asked.binding.vm_id}", style=STRONG)
    data = {"vm": asked.binding.vm_id, "answer": code}
    screen_for(options).record(title, fields, name=code, data=data)
    return ExitCode.YES


@drill_app.command(
    help_epilogue=examples(
        "ta key drill record drill.json --answer 91ab…07",
        "ta key drill record drill.json --answer 91ab…07 -o json",
    )
)
def record(drill: Path, /, *, answer: str, options: Options = DEFAULTS) -> ExitCode:
    """Have the authority judge the answer and record it in the audit log.

    Exits 0 when the offline key opens the very key that hosts are given, 1 when it does not.

    Args:
        drill: File of ta key drill begin.
        answer: What ta key drill answer printed.
    """
    from trustauthority.cli import escrow_files as files
    from trustauthority.keyrelease.escrow_export import decode_drill
    from trustauthority.v1 import escrow_pb2 as pb
    from trustauthority.v1.escrow_pb2_grpc import EscrowServiceStub

    asked = decode_drill(files.read_large(drill, "drill"))
    try:
        code = bytes.fromhex(answer)
    except ValueError as error:
        raise InvalidRequest("--answer has 32 hex digits", field="answer") from error
    with session(options) as ta:
        request = pb.RecordDrillRequest(
            vm_id=asked.binding.vm_id,
            key_epoch=asked.binding.key_epoch,
            challenge=asked.challenge,
            answer=code,
        )
        reply = ta.authority.on(EscrowServiceStub).write(lambda s: s.RecordDrill, request)
        vm = asked.binding.vm_id
        text = (
            f"passed: the offline key opens VM {vm}; recorded in the audit log"
            if reply.passed
            else f"FAILED: that is not the answer of VM {vm}'s key; recorded in the audit log"
        )
        ta.done(text, {"vm": vm, "passed": reply.passed}, name=vm)
    return ExitCode.YES if reply.passed else ExitCode.NO
