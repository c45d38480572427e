"""Errors, files, settings as dataclasses, signals and memory, for all other folders of the package."""
