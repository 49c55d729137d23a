"""Reinforcement learning for text-to-music models: the library, which never heard of Ray."""

__version__ = "0.1.0"
