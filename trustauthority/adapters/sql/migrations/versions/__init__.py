"""One file per revision; each says its tables by itself and never imports ``tables.py``."""
