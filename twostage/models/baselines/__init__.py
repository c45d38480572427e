"""Published enhancers, one in each file, from audio to audio."""
