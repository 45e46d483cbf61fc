"""From a provider's settings to its adapter; each adapter's library is loaded only when it is used."""

from trustauthority.adapters.kms.port import Kms
from trustauthority.adapters.kms.settings import KmipSettings, ProviderSettings


def open_kms(settings: ProviderSettings) -> Kms:
    """The adapter for these settings. Talks to nobody yet."""
    match settings:
        case KmipSettings():
            from trustauthority.adapters.kms.kmip import KmipKms

            return KmipKms(settings)
