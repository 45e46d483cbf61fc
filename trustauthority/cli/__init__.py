"""``ta``: the command line for people and scripts. An ordinary client of the authority."""
