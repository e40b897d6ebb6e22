"""Models by name: small networks, ResNets, and those of other libraries."""
