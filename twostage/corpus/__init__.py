"""Restoration of a corpus on a Ray cluster."""
