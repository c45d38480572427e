"""The field's published enhancers: one a file, audio in, audio out."""
