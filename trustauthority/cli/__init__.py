"""The ta command: one file per noun, one renderer, exit codes with a meaning."""
