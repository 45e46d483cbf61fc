"""How people and programs reach the authority: contexts, channel, errors, retries, checkpoints."""
