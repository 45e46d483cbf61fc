r"""UEFI device paths in words: ``PciRoot(0x0)/Pci(0x1,0x3)/HD(1,GPT,…)/\\EFI\\BOOT\\grubx64.efi``.

Trusts nothing on entry. On exit every node was inside its path; a node we do not know is shown by its
type and bytes. A path is where an image was read from; no digest covers it (pitfalls 38).

Source: UEFI Specification 2.10, section 10.3 (nodes) and 10.6 (text form).
"""

from collections.abc import Callable, Mapping
from struct import unpack_from

from trustauthority.codec.efi_text import byte_text, format_guid, utf16_text
from trustauthority.errors import MalformedEvidence

MAX_NODES = 64
_END = 0x7F
_END_ALL = 0xFF
_PNP_VENDOR = 0x41D0


def decode_device_path(data: bytes, *, base: int = 0) -> str:
    """The text form of one device path; empty for no path.

    Raises:
        MalformedEvidence: a node that is shorter than its header or leaves the path.
    """
    nodes: list[str] = []
    offset, size = 0, len(data)
    while offset < size:
        if size - offset < 4:
            raise _malformed("a node is cut off", base + offset)
        kind, subtype = data[offset], data[offset + 1]
        length = data[offset + 2] | data[offset + 3] << 8
        end = offset + length
        if length < 4 or end > size:
            raise _malformed(f"a node of {length} bytes", base + offset)
        if kind == _END and subtype == _END_ALL:
            break
        if len(nodes) >= MAX_NODES:
            raise _malformed(f"more than {MAX_NODES} nodes", base + offset)
        body = data[offset + 4 : end]
        nodes.append("," if kind == _END else _node(kind, subtype, body))
        offset = end
    return "/".join(nodes)


def _malformed(message: str, offset: int) -> MalformedEvidence:
    return MalformedEvidence(message, part="device path", offset=offset)


def _node(kind: int, subtype: int, body: bytes) -> str:
    show = _NODES.get((kind, subtype))
    if show is not None:
        minimum, text = show
        if len(body) >= minimum:
            return text(body)
    return f"Path({kind},{subtype},{body[:64].hex()})"


def _acpi(body: bytes) -> str:
    hid, uid = unpack_from("<II", body)
    number = hid >> 16
    if hid & 0xFFFF != _PNP_VENDOR:
        return f"Acpi(0x{hid:08x},0x{uid:x})"
    name = {0x0A03: "PciRoot", 0x0A08: "PcieRoot"}.get(number)
    return f"{name}(0x{uid:x})" if name else f"Acpi(PNP{number:04X},0x{uid:x})"


def _pci(body: bytes) -> str:
    return f"Pci(0x{body[1]:x},0x{body[0]:x})"


def _hard_drive(body: bytes) -> str:
    number, start, size = unpack_from("<IQQ", body)
    signature, scheme = body[20:36], body[37]
    if scheme == 2:
        name = f"GPT,{format_guid(signature)}"
    elif scheme == 1:
        name = f"MBR,0x{int.from_bytes(signature[:4], 'little'):08x}"
    else:
        name = f"{scheme},{signature.hex()}"
    return f"HD({number},{name},0x{start:x},0x{size:x})"


def _mac(body: bytes) -> str:
    size = 6 if body[32] in {0, 1} else 32
    return f"MAC({body[:size].hex()},0x{body[32]:x})"


def _ipv4(body: bytes) -> str:
    return f"IPv4({'.'.join(str(octet) for octet in body[4:8])})"


def _nvme(body: bytes) -> str:
    identifier = "-".join(f"{octet:02X}" for octet in reversed(body[4:12]))
    return f"NVMe(0x{unpack_from('<I', body)[0]:x},{identifier})"


def _words(name: str, layout: str) -> Callable[[bytes], str]:
    def text(body: bytes) -> str:
        return f"{name}({','.join(f'0x{value:x}' for value in unpack_from(layout, body))})"

    return text


def _guid(name: str) -> Callable[[bytes], str]:
    def text(body: bytes) -> str:
        rest = f",{body[16:48].hex()}" if len(body) > 16 else ""
        return f"{name}({format_guid(body[:16])}{rest})"

    return text


_NODES: Mapping[tuple[int, int], tuple[int, Callable[[bytes], str]]] = {
    (1, 1): (2, _pci),
    (1, 3): (20, _words("MemoryMapped", "<IQQ")),
    (1, 4): (16, _guid("VenHw")),
    (1, 5): (4, _words("Ctrl", "<I")),
    (2, 1): (8, _acpi),
    (2, 2): (12, _acpi),
    (3, 1): (4, _words("Ata", "<BBH")),
    (3, 2): (4, _words("Scsi", "<HH")),
    (3, 5): (2, _words("USB", "<BB")),
    (3, 10): (16, _guid("VenMsg")),
    (3, 11): (33, _mac),
    (3, 12): (8, _ipv4),
    (3, 13): (16, lambda body: f"IPv6({body[16:32].hex() or body[:16].hex()})"),
    (3, 17): (1, _words("Unit", "<B")),
    (3, 18): (6, _words("Sata", "<HHH")),
    (3, 23): (12, _nvme),
    (3, 24): (0, lambda body: f"Uri({byte_text(body)})"),
    (3, 26): (1, _words("SD", "<B")),
    (3, 29): (1, _words("eMMC", "<B")),
    (4, 1): (38, _hard_drive),
    (4, 2): (20, _words("CDROM", "<IQQ")),
    (4, 3): (16, _guid("VenMedia")),
    (4, 4): (0, utf16_text),
    (4, 6): (16, _guid("FvFile")),
    (4, 7): (16, _guid("Fv")),
    (4, 8): (20, lambda body: f"Offset(0x{unpack_from('<Q', body, 4)[0]:x})"),
    (4, 9): (16, _words("RamDisk", "<QQ")),
    (5, 1): (4, lambda body: f"BBS({unpack_from('<H', body)[0]},{byte_text(body[4:])})"),
}
