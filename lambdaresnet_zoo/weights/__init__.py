"""Weights as files: those that ship with the package, their digests, results and cards."""
