"""A folder for each format that checkpoints come in."""
