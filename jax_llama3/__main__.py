"""`python -m jax_llama3`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
