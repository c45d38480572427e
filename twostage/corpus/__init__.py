"""A corpus restored on a Ray cluster."""
