"""The version of Burnish, in a place that every floor may import."""

__version__ = "0.1.0"
