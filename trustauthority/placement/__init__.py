"""Who may run which VM: conditions as data, transitions over them, and the advice to schedulers."""
