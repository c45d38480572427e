"""Building blocks that are independent of speech."""
