"""Where each event of a boot log begins and ends, so that a test can move events about."""

import struct


def event_slices(raw: bytes) -> tuple[bytes, list[bytes]]:
    """The Spec ID header, and the bytes of each event after it."""
    start = 32 + struct.unpack_from("<I", raw, 28)[0]
    count = struct.unpack_from("<I", raw, 32 + 24)[0]
    sizes = dict(struct.unpack_from("<HH", raw, 32 + 28 + 4 * i) for i in range(count))
    events, at = [], start
    while at < len(raw):
        end = at + 12
        for _ in range(struct.unpack_from("<I", raw, at + 8)[0]):
            end += 2 + sizes[struct.unpack_from("<H", raw, end)[0]]
        end += 4 + struct.unpack_from("<I", raw, end)[0]
        events.append(raw[at:end])
        at = end
    return raw[:start], events
