"""How the servers of a KMIP KMS are doing: Query and Discover Versions over a connection to each.

Stage: adapter, run in the key room's child only. Guarantees that both directions of TLS trust are told
apart, that our certificate's end is told before it comes, and that what a server says about itself is
cut to one printable line. Shows no key.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kmip.core import enums

from trustauthority.adapters.kms.credentials import (
    WARN_CERTIFICATE_MS,
    certificate_end_ms,
    with_expiry,
    with_skew,
)
from trustauthority.adapters.kms.kmip_client import KmipServer, kmip_trouble
from trustauthority.adapters.kms.settings import KmipSettings
from trustauthority.model.kms import HealthState, KmsHealth, ProviderKind

_MAX_VENDOR = 160
_OPERATIONS = {
    enums.Operation.CREATE,
    enums.Operation.ACTIVATE,
    enums.Operation.GET,
    enums.Operation.GET_ATTRIBUTES,
}


def kmip_health(settings: KmipSettings, servers: Sequence[KmipServer], *, now_ms: int) -> KmsHealth:
    """Ask every server; one that fails while another answers is a warning."""
    answers = [_ask(settings, server, now_ms=now_ms) for server in servers]
    bad = [each for each in answers if not each.usable]
    worst = next((each for each in answers if each.state is HealthState.WARNING), answers[0])
    if not bad:
        state, words = worst.state, ""
    elif len(bad) < len(answers):
        state, words = HealthState.WARNING, f"{len(bad)} of {len(answers)} servers fail: "
    else:
        state, words = HealthState.ERROR, ""
    health = KmsHealth(
        state=state,
        detail=words + "; ".join(each.detail for each in answers),
        kind=ProviderKind.KMIP,
        trusts_server=_together([each.trusts_server for each in answers]),
        trusted_by_server=_together([each.trusted_by_server for each in answers]),
    )
    return with_expiry(
        health,
        what=f"our client certificate {settings.certificate}",
        end_ms=certificate_end_ms(settings.certificate),
        now_ms=now_ms,
        warn_ms=WARN_CERTIFICATE_MS,
    )


def _ask(settings: KmipSettings, server: KmipServer, *, now_ms: int) -> KmsHealth:
    health = KmsHealth(state=HealthState.ERROR, detail="", kind=ProviderKind.KMIP)
    client: Any = None
    try:
        client = server.connect()
        detail, complaint = _introduction(settings, client.proxy)
        server_s = client.proxy.server_time_s
    except Exception as failure:  # noqa: BLE001  foreign text may quote an answer: none passes
        trouble = kmip_trouble(failure)
        return replace(
            health,
            detail=f"KMS {server.name} {trouble.says}",
            trusts_server=trouble.trusts_server,
            trusted_by_server=trouble.trusted_by_server,
        )
    finally:
        if client is not None:
            client.proxy.close()
    health = replace(
        health,
        state=HealthState.ERROR if complaint else HealthState.OK,
        detail=f"KMS {server.name} {complaint}{detail}",
        trusts_server=True,
        trusted_by_server=True,
    )
    server_ms = None if server_s is None else server_s * 1000
    return with_skew(health, server_ms=server_ms, now_ms=now_ms)


def _introduction(settings: KmipSettings, proxy: Any) -> tuple[str, str]:
    """Who the server says it is, and what it lacks that we need."""
    functions = [
        enums.QueryFunction.QUERY_OPERATIONS,
        enums.QueryFunction.QUERY_SERVER_INFORMATION,
    ]
    answer = proxy.query(query_functions=functions)
    if answer.result_status.value is not enums.ResultStatus.SUCCESS:
        return "", "refuses to be asked"
    operations = set(answer.operations or ())
    said = "".join(c for c in str(answer.vendor_identification) if c.isprintable())[:_MAX_VENDOR]
    detail = f"answers KMIP {settings.version}: {said}"
    if missing := sorted(each.name for each in _OPERATIONS - operations):
        return detail, f"does not offer {', '.join(missing)}; it "
    found = proxy.discover_versions()
    versions = {str(each) for each in found.protocol_versions or ()}
    if found.result_status.value is enums.ResultStatus.SUCCESS and settings.version not in versions:
        return detail, f"does not list version {settings.version}; it "
    return detail, ""


def _together(flags: Sequence[bool | None]) -> bool | None:
    """False if one is, True if all are that are known."""
    known = [flag for flag in flags if flag is not None]
    return all(known) if known else None
