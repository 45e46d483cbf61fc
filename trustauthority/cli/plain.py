"""Messages as plain data for ``-o json`` and ``-o yaml``: the form that the gateway gives, too."""

from trustauthority.client.plain import Plain, enum_word, plain, word

__all__ = ["Plain", "enum_word", "plain", "word"]
