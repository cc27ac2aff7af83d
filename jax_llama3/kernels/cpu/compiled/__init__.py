"""What numba compiles. Imported only where numba is installed."""
