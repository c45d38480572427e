"""A page in the browser: `page` draws it with gradio, the other files do what it shows and know nothing of gradio."""
