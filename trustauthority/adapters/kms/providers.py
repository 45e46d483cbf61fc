"""From a provider's settings to its adapter; each adapter's library is loaded only when it is used."""

from trustauthority.adapters.kms.port import Kms
from trustauthority.adapters.kms.settings import (
    AwsSettings,
    KmipSettings,
    Pkcs11Settings,
    ProviderSettings,
    TransitSettings,
)
from trustauthority.errors import KmsUnavailable


def open_kms(settings: ProviderSettings) -> Kms:
    """The adapter for these settings. Talks to nobody yet.

    Raises:
        KmsUnavailable: its library is not installed; the message names the extra.
    """
    try:
        return _open(settings)
    except ModuleNotFoundError as failure:
        raise KmsUnavailable(
            f"providers of kind {settings.kind} need the Python package {failure.name}:"
            f" install trustauthority[{settings.kind}]"
        ) from None


def _open(settings: ProviderSettings) -> Kms:
    match settings:
        case KmipSettings():
            from trustauthority.adapters.kms.kmip import KmipKms

            return KmipKms(settings)
        case Pkcs11Settings():
            from trustauthority.adapters.kms.pkcs11 import Pkcs11Kms

            return Pkcs11Kms(settings)
        case TransitSettings():
            from trustauthority.adapters.kms.transit import TransitKms

            return TransitKms(settings)
        case AwsSettings():
            from trustauthority.adapters.kms.aws import AwsKms

            return AwsKms(settings)
