"""Trust Authority: decides which hypervisor hosts may hold the keys of encrypted VMs."""
