"""Text to unit vectors: a decoder-only LLM, a prompt and a pooling."""
