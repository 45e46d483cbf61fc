"""Enforcement points that run outside the agent: libvirt's qemu hook, and the watchdog of each VM."""
