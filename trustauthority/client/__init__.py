"""Channel, errors and retries for programs that speak to the authority."""
