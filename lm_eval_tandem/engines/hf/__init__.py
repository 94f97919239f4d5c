"""transformers as an engine."""
