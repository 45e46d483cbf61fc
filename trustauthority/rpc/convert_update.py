"""From the messages of an announced update to the model; sizes and presence are checked here."""

from collections.abc import Mapping

from trustauthority.errors import InvalidRequest
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.prediction import UpdatedFile
from trustauthority.rpc import convert
from trustauthority.services.baselines import Update
from trustauthority.v1 import admin_pb2 as pb

MAX_FILES = 64
MAX_SECTIONS = 96
MAX_COMMAND_LINE = 4096


def announced_update(request: pb.PredictBaselineRequest) -> Update:
    """The update that a request announces.

    Raises:
        InvalidRequest: too many files, digests of a wrong size, an unknown bank.
    """
    if len(request.files) > MAX_FILES:
        raise InvalidRequest(f"files: at most {MAX_FILES}", field="files")
    line = request.command_line
    if len(line) > MAX_COMMAND_LINE or not line.isprintable():
        raise InvalidRequest(
            f"command_line: at most {MAX_COMMAND_LINE} printable characters", field="command_line"
        )
    return Update(
        host=convert.optional_name(request.host, "host"),
        base=convert.optional_name(request.base, "base"),
        files=tuple(_file(each) for each in request.files),
        command_line=line,
    )


def _file(message: pb.UpdatedFile) -> Mapping[str, UpdatedFile]:
    role = convert.text(message.role, "role")
    return {each.bank: _in_bank(role, each) for each in message.digests}


def _in_bank(role: str, message: pb.FileDigests) -> UpdatedFile:
    try:
        size = HashAlgorithm(message.bank).size
    except ValueError as error:
        raise InvalidRequest("bank: an unknown hash algorithm", field="bank") from error
    if len(message.sections) > MAX_SECTIONS:
        raise InvalidRequest(f"sections: at most {MAX_SECTIONS}", field="sections")
    return UpdatedFile(
        role=role,
        digest=_digest(message.file, size, "file"),
        image_digest=_digest(message.image, size, "image") if message.image else "",
        sections={
            convert.text(each.section, "section"): _digest(each.digest, size, "digest")
            for each in message.sections
        },
        load_options=(
            _digest(message.load_options, size, "load_options") if message.load_options else ""
        ),
    )


def _digest(value: bytes, size: int, field: str) -> str:
    if len(value) != size:
        raise InvalidRequest(f"{field}: {size} bytes", field=field)
    return value.hex()
