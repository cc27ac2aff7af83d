"""The process: what XLA compiles, memory, garbage, progress. No JAX program of ours."""
