"""Token models: the families, their parts, and the protocol that they keep."""
