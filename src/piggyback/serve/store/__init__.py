"""Task files: where they lie, which of them are served, and what has changed."""
