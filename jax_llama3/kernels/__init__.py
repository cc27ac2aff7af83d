"""Faster forms of the few operations in `model.ops`, never needed for a result."""
