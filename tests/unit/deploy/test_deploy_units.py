"""The systemd units: hardened as documented, and what they need from sysusers and tmpfiles."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[3] / "deploy" / "systemd"
NAMES = (
    "trustauthority.service",
    "trustauthority-key.service",
    "trustauthority-gateway.service",
    "hostagent.service",
)
AUTHORITY = NAMES[:2]
LARGEST_EXPOSURE = 2.0


class _Repeating(dict):
    """Values of a directive that is given more than once, joined by line ends."""

    def __setitem__(self, key, value):
        if key in self and isinstance(value, list) and isinstance(self[key], list):
            value = self[key] + value
        super().__setitem__(key, value)


def service(name: str) -> configparser.SectionProxy:
    """The [Service] section of a unit."""
    unit = configparser.ConfigParser(strict=False, interpolation=None, dict_type=_Repeating)
    unit.optionxform = str
    unit.read(UNITS / name)
    return unit["Service"]


@pytest.mark.parametrize("name", NAMES)
def test_units_stay_hardened(name):
    """What each unit must deny, checked without systemd: style.md 4.3."""
    found = service(name)
    assert found["Type"] == "notify"
    assert found["CapabilityBoundingSet"] == ""
    assert found["ProtectSystem"] == "strict"
    assert found["UMask"] == "0077"
    assert found["LimitCORE"] == "0", "a core dump would hold keys (S8)"
    for directive in ("NoNewPrivileges", "MemoryDenyWriteExecute", "PrivateTmp", "ProtectHome"):
        assert found[directive] == "yes"
    assert found["DevicePolicy"] == "closed"
    assert found["User"] not in {"root", "nobody"}
    assert "@privileged" in found["SystemCallFilter"]


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)
@pytest.mark.parametrize("name", NAMES)
def test_exposure_as_systemd_measures_it(name):
    """An overall exposure level of 2.0 or less for each unit."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNITS / name)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level is not None
    assert float(level[1]) <= LARGEST_EXPOSURE


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)
@pytest.mark.parametrize("name", NAMES)
def test_systemd_understands_each_line(name, tmp_path):
    """A misspelt directive is ignored by systemd, and with it what it should have denied."""
    text = (UNITS / name).read_text()
    program = re.search(r"ExecStart=(/opt/trustauthority/bin/\w+)", text)
    assert program is not None
    (tmp_path / name).write_text(text.replace(program[1], "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--no-pager", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if name in line]
    assert complaints == []


def test_a_misspelt_line_would_be_seen(tmp_path):
    """The check above can fail."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    text = "[Service]\nExecStart=/bin/true\nNoNewPrivilege=yes\n"
    (tmp_path / "some.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--no-pager", str(tmp_path / "some.service")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "NoNewPrivilege" in done.stderr


def test_the_gateway_finds_nothing_of_the_authority():
    """N62: who takes it over has a client's identity: another user, no database, no settings, no socket."""
    found = service("trustauthority-gateway.service")
    assert found["User"] not in {service(name)["User"] for name in AUTHORITY}
    hidden = {path.lstrip("-") for path in found["InaccessiblePaths"].split()}
    assert {f"/var/lib/{service(name)['StateDirectory']}" for name in AUTHORITY} <= hidden
    assert "/run/trustauthority" in hidden
    assert found["StateDirectory"] == "trustauthority-gateway"
    assert found["ExecStart"].endswith(" gateway serve")


def test_only_the_agent_may_use_a_device():
    """The TPM is the one device, through the resource manager, for the agent alone."""
    assert service("hostagent.service")["DeviceAllow"] == "/dev/tpmrm0 rw"
    for name in NAMES[:3]:
        assert "DeviceAllow" not in service(name)
        assert service(name)["PrivateDevices"] == "yes"


def test_the_key_role_is_a_process_of_its_own():
    """Only the key role reaches the KMS; no other unit may run it, nor it another role."""
    roles = {name: service(name)["ExecStart"].rpartition("--roles ")[2] for name in AUTHORITY}
    assert roles == {NAMES[0]: "attest,placement,admin", NAMES[1]: "key"}


@pytest.mark.parametrize("name", NAMES)
def test_users_and_groups_are_declared(name):
    """A unit whose user does not exist fails at start with a message nobody understands."""
    declared = {
        line.split()[1]
        for line in (UNITS / "sysusers.conf").read_text().splitlines()
        if line[:2] in {"u ", "g "}
    }
    found = service(name)
    assert {found["User"], found["Group"]} <= declared
    assert set(found.get("SupplementaryGroups", "").split()) <= declared


def test_the_agent_may_read_both_logs_without_root():
    """The kernel gives them to root only; tmpfiles hands them to the group the agent is in."""
    group = service("hostagent.service")["SupplementaryGroups"]
    rules = [
        line.split()
        for line in (UNITS / "tmpfiles.conf").read_text().splitlines()
        if line.startswith("z ")
    ]
    assert {Path(rule[1]).name for rule in rules} == {
        "binary_bios_measurements",
        "binary_runtime_measurements",
    }
    assert {(rule[2], rule[3], rule[4]) for rule in rules} == {("0440", "root", group)}
