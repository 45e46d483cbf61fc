"""A whole IMA log file, whichever of the two forms it has.

Trusts nothing on entry; guarantees what ``codec.ima`` and ``codec.ima_ascii`` do. The forms can't be
confused: the text begins with a decimal index, the binary form with a 4-byte one.
"""

from trustauthority.codec.ima import decode_ima_binary
from trustauthority.codec.ima_ascii import decode_ima_ascii
from trustauthority.model.ima import ImaEncoding, ImaLog

_DIGITS_AND_BLANK = b" 0123456789"


def is_ascii(data: bytes) -> bool:
    """Say whether this is the text form."""
    return len(data) > 1 and data[0] in _DIGITS_AND_BLANK and data[1] in _DIGITS_AND_BLANK


def decode_ima_log(data: bytes) -> ImaLog:
    """Decode a whole log of either form.

    Raises:
        MalformedEvidence: with the offset of the entry that makes no sense or is cut off.
    """
    if is_ascii(data):
        entries, encoding = decode_ima_ascii(data), ImaEncoding.ASCII
    else:
        entries, encoding = decode_ima_binary(data), ImaEncoding.BINARY
    return ImaLog(encoding=encoding, entries=entries, size=len(data))
