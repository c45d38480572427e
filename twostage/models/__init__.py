"""Networks and signal processing that turn degraded speech into restored speech, and their checkpoints."""
