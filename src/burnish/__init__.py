"""Burnish: take a language model through its whole life on your own machines."""

__version__ = "0.1.0"
