"""The web interface: `page` builds it with gradio; the other modules do the work and do not depend on gradio."""
