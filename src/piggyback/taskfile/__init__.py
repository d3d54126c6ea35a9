"""Tasks: what one adds to the backbone, its file, its head, and which of them answers."""
