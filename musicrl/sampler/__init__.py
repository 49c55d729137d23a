"""Sampling: grids of tokens from a policy, with the log-probability of every token."""
