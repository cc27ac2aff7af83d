"""A CPU's operations: XLA's own forms for it, and kernels that numba compiles."""
