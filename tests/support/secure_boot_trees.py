"""What is said of Secure Boot, log by log: each log is what a TPM proves, and one thing in it is odd."""

from collections.abc import Callable, Mapping

from support.logbuilder import (
    ACTION_EFI,
    APPLICATION,
    AUTHORITY,
    DATABASE,
    DRIVER_CONFIG,
    GLOBAL,
    HCRTM,
    IPL,
    SEPARATOR,
    LogBuilder,
    good_log,
    guid,
    variable,
)
from support.variants import proven
from trustauthority.appraisal.boot import secure_boot_checks
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.model.policy import BootPolicy, Requirement
from trustauthority.model.quirk import Quirk
from trustauthority.model.verdict import Check

Checks = tuple[Check, ...]
REQUIRED = Requirement.REQUIRED
_DB_ENTRY = guid(GLOBAL) + bytes(32)
_SHIM_LOCK = "605dab50-e046-4300-abb6-3dd810dd8b23"


def _secure(builder: LogBuilder, *quirks: Quirk) -> Checks:
    """What is said of Secure Boot, of a log that a TPM proves."""
    log = proven(decode_boot_log(builder.bytes))
    return secure_boot_checks(log, BootPolicy(quirks=quirks))


def _started() -> LogBuilder:
    """Firmware with its policy and separators, and an authority for the boot loader."""
    return _accepted(LogBuilder().policy().separators((7,)).separators())


def _accepted(builder: LogBuilder) -> LogBuilder:
    return builder.event(7, AUTHORITY, variable("db", _DB_ENTRY, DATABASE))


def _configured(*settings: tuple[str, bytes]) -> LogBuilder:
    builder = LogBuilder()
    for name, value in settings:
        builder.variable(name, value)
    return _accepted(builder.separators((7,)).separators())


def _tampered(pcr: int, data: bytes) -> LogBuilder:
    """A separator of one register that is none."""
    builder = LogBuilder().policy().separators((7,))
    builder.separators([each for each in range(7) if each != pcr])
    return _accepted(builder).event(pcr, SEPARATOR, data)


_OFF = variable("MokSBState", b"\1", _SHIM_LOCK)
SECURE_BOOT: Mapping[str, Callable[[], Checks]] = {
    "good": lambda: _secure(good_log()),
    "no log": lambda: secure_boot_checks(None, BootPolicy()),
    "off": lambda: _secure(LogBuilder().policy(b"\0").separators((7,)).separators()),
    "not measured": lambda: _secure(_configured(("PK", b"x"))),
    "empty": lambda: _secure(_configured(("SecureBoot", b""))),
    "two bytes": lambda: _secure(_configured(("SecureBoot", b"\1\0"))),
    "the value 2": lambda: _secure(_configured(("SecureBoot", b"\2"))),
    "measured twice": lambda: _secure(_configured(("SecureBoot", b"\1"), ("SecureBoot", b"\1"))),
    "measured after the separator": lambda: _secure(_started().variable("SecureBoot", b"\1")),
    "measured with another digest": lambda: _secure(
        _accepted(
            LogBuilder()
            .event(7, DRIVER_CONFIG, variable("SecureBoot", b"\1"), hashed=b"another")
            .separators((7,))
            .separators()
        )
    ),
    "a variable that can't be read": lambda: _secure(_started().event(7, DRIVER_CONFIG, b"cut")),
    "a vendor's setting after the separator": lambda: _secure(_started().variable("V", b"\1")),
    "setup mode": lambda: _secure(
        _configured(("SecureBoot", b"\1"), ("SetupMode", b"\1"), ("PK", b"x"))
    ),
    "audit mode": lambda: _secure(
        _configured(("SecureBoot", b"\1"), ("AuditMode", b"\1"), ("PK", b"x"))
    ),
    "no platform key": lambda: _secure(_configured(("SecureBoot", b"\1"), ("PK", b""))),
    "no authority used": lambda: _secure(LogBuilder().policy().separators((7,)).separators()),
    "an authority that nothing proves": lambda: _secure(
        _started().event(7, AUTHORITY, variable("db", b"x", DATABASE), hashed=b"y")
    ),
    "an authority that can't be read": lambda: _secure(_started().event(7, AUTHORITY, b"cut")),
    "shim checks nothing": lambda: _secure(_started().event(7, AUTHORITY, _OFF)),
    "shim checks nothing, said twice": lambda: _secure(
        _started().event(7, AUTHORITY, _OFF).event(7, IPL, b"x", hashed=_OFF)
    ),
    "an action that nothing proves": lambda: _secure(
        _started().event(7, ACTION_EFI, b"all is well", hashed=b"UEFI Debug Mode")
    ),
    "an action that is no text": lambda: _secure(_started().event(7, ACTION_EFI, b"\x7f")),
    "a database that is none of devices": lambda: _secure(
        _started().event(7, 0x800000E3, variable("MokListRT", b"x", _SHIM_LOCK))
    ),
    "device data that can't be read": lambda: _secure(_started().event(7, 0x800000E4, b"cut")),
    "debug mode": lambda: _secure(
        _accepted(
            LogBuilder().event(7, ACTION_EFI, b"UEFI Debug Mode").policy().separators(range(8))
        )
    ),
    "no DMA protection": lambda: _secure(
        _started().event(7, ACTION_EFI, b"DMA Protection Disabled")
    ),
    "downgraded firmware": lambda: _secure(
        _started().event(0, ACTION_EFI, b"Security Level is Downgraded to 1\0")
    ),
    "the boot failed": lambda: _secure(_tampered(3, b"\1\0\0\0")),
    "a separator that is none": lambda: _secure(_tampered(3, b"\2\0\0\0")),
    "a separator twice": lambda: _secure(_started().separators((5,))),
    "a separator of the operating system": lambda: _secure(_started().separators((8, 8))),
    "no separator": lambda: _secure(
        _accepted(LogBuilder().policy().separators((7,)).separators((0, 1, 2, 4, 5, 6)))
    ),
    "a type that does not belong into PCR 2": lambda: _secure(
        _started().event(2, IPL, b"x").event(2, AUTHORITY, b"y")
    ),
    "a type that does not belong into PCR 7": lambda: _secure(_started().event(7, IPL, b"x")),
    "an application before the boot option": lambda: _secure(_early()),
    "an application before the boot option, as allowed": lambda: _secure(
        _early(), Quirk.APPLICATION_BEFORE_CALLING_EVENT
    ),
    "a locality that comes late": lambda: _secure(_started().event(0, 3, b"StartupLocality\0\x03")),
    "an H-CRTM and another locality": lambda: _secure(_contradicting()),
    "PCR 7 does not replay": lambda: secure_boot_checks(
        proven(decode_boot_log(good_log().bytes), pcrs=range(7)), BootPolicy()
    ),
    "findings refuse where the policy says so": lambda: secure_boot_checks(
        proven(decode_boot_log(_early().bytes)), BootPolicy(debug=REQUIRED)
    ),
}


def _early() -> LogBuilder:
    builder = LogBuilder().policy().separators((7,))
    builder.event(4, APPLICATION, bytes(32), hashed=b"a tool of the vendor")
    builder.event(4, ACTION_EFI, b"Calling EFI Application from Boot Option\0")
    return _accepted(builder.separators())


def _contradicting() -> LogBuilder:
    builder = LogBuilder().event(0, 3, b"StartupLocality\0\x03").start(0, 4)
    return _accepted(builder.event(0, HCRTM, b"HCRTM").policy().separators(range(8)))
