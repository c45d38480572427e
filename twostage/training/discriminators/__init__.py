"""Discriminators of audio and of log-mels."""
