"""Our own converted folder as a source."""
