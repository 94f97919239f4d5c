"""Models behind a server, and other models that are seen as text alone."""
