"""What each decoder says of every small change of its good inputs, in a form that can be read and compared.

Each good input is cut at each byte, and each byte is zeroed, filled, changed by its lowest and highest bit,
left out and doubled. Of DER, each element is also left out, doubled, emptied and given another tag, with
the lengths around it made right. The table of a decoder counts the answers, numbers in them left open.
"""

import re
from collections import Counter
from collections.abc import Iterator

from support.decoders import DECODERS, Decoder
from trustauthority.errors import MalformedEvidence, TrustAuthorityError

SEEDS = 3
WHOLE = 600
"""Bytes of a seed that are all changed; of the rest every seventh."""
FAMILIES = ("tpm", "eventlog", "efi", "ima", "x509", "cel", "pe", "bundle", "rules", "tlog")
NOT_OURS = ("appraisal", "report", "policy")
"""What these say comes from several layers, or from the words of a library."""
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


def decoders(family: str) -> list[Decoder]:
    """The decoders of a family whose answers are all ours."""
    return [
        decoder
        for decoder in DECODERS
        if decoder.family == family and decoder.name.split(".")[0] not in NOT_OURS
    ]


def table(decoder: Decoder) -> list[str]:
    """The lines of a decoder: its name, count, where the first and last of these answers point, answer."""
    return [
        f"{decoder.name} {count} {where} {answer}"
        for answer, (count, where) in sorted(_answers(decoder).items())
    ]


def _answers(decoder: Decoder) -> dict[str, tuple[int, str]]:
    counts: Counter[str] = Counter()
    places: dict[str, list[int]] = {}
    good = [seed for seed in decoder.seeds() if answer_to(decoder, seed)[0] == "decoded"]
    for seed in good[:SEEDS]:
        for changed in changes(seed, as_der=decoder.family == "x509"):
            answer, offset = answer_to(decoder, changed)
            counts[answer] += 1
            places.setdefault(answer, []).append(offset)
    return {
        answer: (count, f"{min(places[answer])}-{max(places[answer])}/{sum(places[answer]) % 997}")
        for answer, count in counts.items()
    }


def answer_to(decoder: Decoder, data: bytes) -> tuple[str, int]:
    """What a decoder says of an input, numbers left open, and where it points."""
    try:
        decoder.run(data)
    except MalformedEvidence as error:
        text = error.message.replace(f" at byte {error.offset}:", ":", 1)
        return f"{type(error).__name__} {_words(text)}", error.offset
    except TrustAuthorityError as error:
        return f"{type(error).__name__} {_words(error.message)}", 0
    return "decoded", 0


def _words(text: str) -> str:
    """A message without the numbers and the stranger's own bytes in it."""
    text = re.sub(r"refused: .*", "refused", text)  # the words of a library follow
    text = re.sub(r"'.*'|\".*\"|\(.*\)", "…", text)
    return _NUMBER.sub("#", text).encode("ascii", "replace").decode()


def changes(seed: bytes, *, as_der: bool) -> Iterator[bytes]:
    """Every change of an input, the input itself first."""
    yield seed
    places = [*range(min(len(seed), WHOLE)), *range(WHOLE, len(seed), 7)]
    for place in places:
        byte = seed[place]
        yield seed[:place]
        for value in dict.fromkeys((0, 0xFF, byte ^ 1, byte ^ 0x80)):
            if value != byte:
                yield seed[:place] + bytes((value,)) + seed[place + 1 :]
        yield seed[:place] + seed[place + 1 :]
        yield seed[: place + 1] + seed[place:]
    if as_der:
        yield from _der_changes(seed)


# --- DER -----------------------------------------------------------------------------------------

Element = tuple[int, "bytes | list[Element]"]
_STRINGS = (0x03, 0x04)


def _der_changes(seed: bytes) -> Iterator[bytes]:
    try:
        trees = _parse(seed)
    except (IndexError, ValueError):
        return
    for path in _paths(trees, ()):
        for change in _CHANGES:
            yield b"".join(map(_encode, _edited(trees, path, change)))


_CHANGES = ("drop", "double", "empty", "null", "tag", "context", "append", "long")


def _parse(data: bytes) -> "list[Element]":
    """Elements, also those inside of octet and bit strings; ValueError when it is not DER throughout."""
    elements: list[Element] = []
    at = 0
    while at < len(data):
        tag, first = data[at], data[at + 1]
        octets = first & 0x7F if first & 0x80 else 0
        begin = at + 2 + octets
        size = int.from_bytes(data[at + 2 : begin], "big") if octets else first
        if begin + size > len(data) or tag & 0x1F == 0x1F:
            raise ValueError
        body = data[begin : begin + size]
        at = begin + size
        if tag & 0x20:
            elements.append((tag, _parse(body)))
            continue
        if tag == 0x04:
            try:
                elements.append((tag, _parse(body) or body))
                continue
            except (IndexError, ValueError):
                pass
        elements.append((tag, body))
    return elements


def _paths(elements: "list[Element]", prefix: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for index, (_, content) in enumerate(elements):
        yield (*prefix, index)
        if isinstance(content, list):
            yield from _paths(content, (*prefix, index))


def _edited(elements: "list[Element]", path: tuple[int, ...], change: str) -> "list[Element]":
    index, rest = path[0], path[1:]
    tag, content = elements[index]
    if rest and isinstance(content, list):
        made: list[Element] = [(tag, _edited(content, rest, change))]
    else:
        made = {
            "drop": [],
            "double": [(tag, content)] * 2,
            "empty": [(tag, b"")],
            "null": [(0x05, b"")],
            "tag": [(tag ^ 0x01, content)],
            "context": [(0xA5, content)],
            "append": [(tag, _appended(content))],
            "long": [(tag, content), (0x02, b"\x7f")],
        }[change]
    return [*elements[:index], *made, *elements[index + 1 :]]


def _appended(content: "bytes | list[Element]") -> "bytes | list[Element]":
    return [*content, (0x05, b"")] if isinstance(content, list) else content + b"\0"


def _encode(element: Element) -> bytes:
    tag, content = element
    body = content if isinstance(content, bytes) else b"".join(map(_encode, content))
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + body
