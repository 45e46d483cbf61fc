"""When certificates end, in time to do something about it.

Stage: client. Reads PEM; does not verify chains (TLS does).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from trustauthority.client.files import read_public
from trustauthority.errors import ConfigurationInvalid

WARNING_SHARE = 5
"""Warn when less than one fifth of the validity is left: six days of a certificate of 30."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """From when until when a certificate counts."""

    not_before: datetime
    not_after: datetime

    def is_over(self, now: datetime) -> bool:
        """Say whether it has ended."""
        return now >= self.not_after

    def is_near_its_end(self, now: datetime) -> bool:
        """Say whether less than a fifth of it is left."""
        return self.not_after - now < (self.not_after - self.not_before) / WARNING_SHARE

    def left(self, now: datetime) -> timedelta:
        """What remains; negative when it is over."""
        return self.not_after - now


def read_validity(path: Path) -> Validity:
    """The validity of the first certificate in a PEM file. Raises ConfigurationInvalid."""
    try:
        leaf = x509.load_pem_x509_certificates(read_public(path, "certificate"))[0]
    except ValueError as error:
        raise ConfigurationInvalid(f"{path} holds no PEM certificate", path=str(path)) from error
    return Validity(not_before=leaf.not_valid_before_utc, not_after=leaf.not_valid_after_utc)
