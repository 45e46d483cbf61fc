"""Names and ids with a strict grammar, so that none can carry a newline, a path or an escape (N44)."""

import re
from typing import NewType

HostId = NewType("HostId", str)
"""``h-`` and the first 32 hex digits of SHA-256 over the EK's SubjectPublicKeyInfo-free TPMT_PUBLIC."""
VmId = NewType("VmId", str)
ClusterId = NewType("ClusterId", str)
RequestId = NewType("RequestId", str)
ProviderId = NewType("ProviderId", str)

NAME_PATTERN = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
"""Names that people give: 1-63 characters, lower case, digits, ``.``, ``_``, ``-``."""
REQUEST_ID_PATTERN = r"[A-Za-z0-9_-]{16,64}"
"""Request ids: unguessable by construction on the host, 16-64 URL-safe characters."""

_NAME = re.compile(NAME_PATTERN)
_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)


def is_name(text: str) -> bool:
    """Say whether ``text`` follows the grammar of names (hosts, VMs, clusters, providers)."""
    return _NAME.fullmatch(text) is not None


def is_request_id(text: str) -> bool:
    """Say whether ``text`` follows the grammar of request ids."""
    return _REQUEST_ID.fullmatch(text) is not None
