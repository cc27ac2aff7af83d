"""Meta's folders, both ways."""
