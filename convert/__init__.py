"""Checkpoints in and out of jax_llama3's format."""
