"""Restoring signals and files of any length: windows, chunks, streams."""
