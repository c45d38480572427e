"""Sound files, levels and pictures of sound."""
