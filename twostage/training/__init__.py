"""Losses, discriminators, the training loop and its recipes."""
