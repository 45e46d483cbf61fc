"""Stand-ins behind ports; each says that it is one."""
