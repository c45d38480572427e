"""The web interface: `page` draws it with gradio; the other files do the work and do not depend on gradio."""
