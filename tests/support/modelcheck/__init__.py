"""A bounded explicit-state model checker that runs the product's own transition functions.

Authority: ``trustauthority.placement.authority`` and ``placement.clock``. Hosts: ``hostagent.lease``.
What is modelled here is only what surrounds them: a network that delays, loses, duplicates and
reorders; host clocks that run slow; an authority clock that steps; crashes at every point; reboots;
revocations. ``python -m support.modelcheck`` (with ``tests`` on the path) runs the larger bounds.
"""
