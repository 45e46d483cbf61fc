"""``trustauthority init``: what it writes is what ``serve`` can read."""

import tomllib
from pathlib import Path

import pytest

from trustauthority.main.commands import app


@pytest.mark.parametrize("kmip", [True, False])
def test_the_configuration_is_toml_again(tmp_path: Path, kmip: bool) -> None:
    """A setting without a value is left out; init with a KMIP server once failed for it."""
    config, pem = tmp_path / "authority.toml", tmp_path / "x.pem"
    pem.write_text("")
    files = [word for name in ("ca", "certificate", "key") for word in (f"--kmip-{name}", str(pem))]
    words = ["--kmip-host", "192.0.2.1", "--kmip-port", "5696", *files] if kmip else []
    state = ["--state", str(tmp_path / "state"), "--config", str(config), "--no-escrow"]
    app(["init", *state, *words], result_action="return_value")
    written = tomllib.loads(config.read_text())
    assert written["key"]["escrow"] == "none"
    if kmip:
        assert written["key"]["providers"]["default"]["host"] == "192.0.2.1"
