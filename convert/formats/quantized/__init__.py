"""Quantised weights of Hugging Face repositories as plain ones, a module for each way of storing them."""
