"""Pseudo-labels: what a teacher makes of images without labels."""
