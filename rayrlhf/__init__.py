"""RLHF that starts on a laptop and grows to a cluster without changing a line."""

__version__ = "0.1.0"
