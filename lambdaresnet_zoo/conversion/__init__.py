"""Weights of any known format, from anywhere, into this package's networks and into folders."""
