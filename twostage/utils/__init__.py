"""Errors, files, settings as dataclasses, signals, memory: what every room may use."""
