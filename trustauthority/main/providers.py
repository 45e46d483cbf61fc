"""From the configuration's key providers to what their adapters take."""

from collections.abc import Mapping

from trustauthority.adapters.kms.settings import ProviderSettings, provider_from_json
from trustauthority.errors import ConfigurationInvalid
from trustauthority.settings import KeyRoleSettings


def key_providers(settings: KeyRoleSettings) -> Mapping[str, ProviderSettings]:
    """The settings of each provider.

    Raises:
        ConfigurationInvalid: values that make no sense; all problems are in the message.
    """
    made: dict[str, ProviderSettings] = {}
    problems: list[str] = []
    for name, section in settings.providers.items():
        try:
            made[name] = provider_from_json(section.model_dump())
        except ValueError as failure:
            problems.append(f"key.providers.{name}: {failure}")
        waits = max(1, len(getattr(section, "more_servers", ())))
        if waits * getattr(section, "timeout_s", 0.0) >= settings.timeout_s:
            problems.append(
                f"key.providers.{name}.timeout_s: not below key.timeout_s ({settings.timeout_s:g}),"
                " with one wait per server before the last; a child would be killed before that"
            )
    if problems:
        raise ConfigurationInvalid("; ".join(problems), fields="; ".join(problems))
    return made
