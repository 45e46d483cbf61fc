"""The only process in which KEKs and VM keys are in the clear; it handles a batch and is ended.

Stage: adapter, started by ``pool`` as ``python -I -m``, never imported by it. Trusts its parent's
orders: the decision is made and audited. Guarantees that what it writes is the text that an order
answers (``orders``) or a sentence: no plaintext has a way out, not in an error either. What the
libraries copied of a key ends with the process. Does not decide.
"""

import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO

from trustauthority.adapters.keyroom.confine import confine
from trustauthority.adapters.keyroom.frames import HEADER, decode_body, encode_frame, frame_length
from trustauthority.adapters.keyroom.orders import ORDERS, Keyring, log
from trustauthority.adapters.kms.port import is_outage
from trustauthority.errors import KmsUnavailable, TrustAuthorityError


class Room:
    """Answers orders, one at a time."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self._keyring = Keyring(configuration)

    def close(self) -> None:
        """End what was kept open."""
        self._keyring.close()

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one order; a failure is a sentence without anything secret."""
        try:
            return {"ok": ORDERS[message["order"]](self._keyring, message)}
        except KmsUnavailable as failure:
            return {"error": failure.message, "outage": is_outage(failure)}
        except TrustAuthorityError as failure:
            return {"error": failure.message}
        except Exception as failure:  # noqa: BLE001  foreign text may hold a key: the type must do
            return {"error": f"the key room failed ({type(failure).__name__}); nothing left it"}


def serve(orders: BinaryIO, replies: BinaryIO) -> None:
    """Answer frames until the parent closes its end; the first one is the configuration."""
    room: Room | None = None
    while header := orders.read(HEADER):
        message = decode_body(orders.read(frame_length(header)))
        if room is None:
            room = Room(message["configure"])
            reply: Mapping[str, Any] = {"ok": "ready"}
        else:
            reply = room.answer(message)
        replies.write(encode_frame(reply))
        replies.flush()
    if room is not None:
        room.close()


def main() -> int:
    """Confine this process, then serve on standard input and output."""
    confine()
    warnings.simplefilter("ignore")
    # what a library prints must not get into the answers
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(sys.stdin.buffer, replies)
    except Exception as failure:  # noqa: BLE001  a traceback's message may hold what was read
        log(f"ended by {type(failure).__name__}")
        return 1
    return 0


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)  # PyKMIP's DEBUG lines are the bytes of answers
    sys.exit(main())
