"""Reads certificates and CRLs from files, folders and bundles; every surprise is an error or a note.

Trusts nothing. A file that the caller named must decode; in a folder, what doesn't decode is skipped with
a note, which can only lead to less trust, never to more.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from trustauthority.cli.input_files import read_input
from trustauthority.codec.x509 import MAX_BUNDLE, decode_certificates
from trustauthority.codec.x509_crl import decode_revocation_list
from trustauthority.errors import InvalidRequest, MalformedEvidence
from trustauthority.model.certificate import Certificate, CertificateRevocationList

MAX_FILES = 20_000
"""Files read from one folder."""


def read_bytes(path: Path) -> bytes:
    """The content of a file of at most 64 MiB.

    Raises:
        InvalidRequest: it can't be read, is no regular file, or is longer.
    """
    return read_input(path, MAX_BUNDLE, name=str(path), field=str(path))


def read_authorities(paths: Iterable[Path], notes: list[str]) -> tuple[Certificate, ...]:
    """CA certificates of bundles and folders; what is skipped is added to ``notes``.

    Raises:
        InvalidRequest: a path can't be read.
        MalformedEvidence: a named file does not decode.
    """
    found: dict[bytes, Certificate] = {}
    for path in paths:
        for name, certificate in _certificates(path, notes):
            if certificate.is_authority:
                found.setdefault(certificate.fingerprint, certificate)
            else:
                notes.append(f"{name}: skipped, not a CA certificate: {certificate.label}")
    return tuple(found.values())


def read_revocation_lists(paths: Iterable[Path]) -> tuple[CertificateRevocationList, ...]:
    """The CRLs of these files, and of all files in these folders.

    Raises:
        InvalidRequest: a path can't be read.
        MalformedEvidence: one does not decode; a CRL that is skipped would be a revocation missed.
    """
    return tuple(
        decode_revocation_list(read_bytes(file))
        for path in paths
        for file in (files_below(path) if path.is_dir() else (path,))
    )


def _certificates(path: Path, notes: list[str]) -> Iterator[tuple[Path, Certificate]]:
    if not path.is_dir():
        yield from ((path, one) for one in decode_certificates(read_bytes(path)))
        return
    for file in files_below(path):
        try:
            certificates = decode_certificates(read_bytes(file))
        except (MalformedEvidence, InvalidRequest) as error:
            notes.append(f"{file}: skipped: {error.message}")
            continue
        yield from ((file, one) for one in certificates)


def files_below(folder: Path) -> list[Path]:
    """The regular files below a folder, in a stable order."""
    files = sorted(islice((one for one in folder.rglob("*") if one.is_file()), MAX_FILES + 1))
    if len(files) > MAX_FILES:
        raise InvalidRequest(f"{folder}: more than {MAX_FILES} files", field=str(folder))
    return files
