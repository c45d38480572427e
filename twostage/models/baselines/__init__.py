"""Published enhancers, audio to audio, one in each file."""
