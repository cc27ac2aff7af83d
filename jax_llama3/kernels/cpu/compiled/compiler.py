"""How the kernels are compiled: numba's decorators, and what numba keeps for other processes.

Imported only where numba is installed, as is every module of this folder.
"""

import hashlib
import inspect
from pathlib import Path
from types import CellType, FunctionType

from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

# Sums may be taken in any order, as in every fast product; nothing else is relaxed.
_ANY_ORDER = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
_AS_WRITTEN = {"error_model": "numpy"}


def compiled(function):
    """Compile for other kernels' use; the order of sums is the compiler's choice."""
    # Unwrapped: numba compiles the function itself, not what a checker of types put around it.
    return njit(**_ANY_ORDER)(inspect.unwrap(function))


def compiled_exactly(function):
    """Compile for other kernels' use; operations are rounded one by one, as they are written."""
    return njit(**_AS_WRITTEN)(inspect.unwrap(function))


def c_function(signature):
    """Compile what C calls, with all that it calls itself; numba keeps that for other processes."""
    kept = cfunc(signature, **_ANY_ORDER, cache=True)
    return lambda function: kept(_of_all_sources(inspect.unwrap(function)))


def _of_all_sources(function):
    """The function as a closure over a digest of all sources in this folder, which it does not read.

    numba looks up what it keeps by the function's own file and code and by the values it closes over.
    Without the digest a change in another file would not be seen.
    """
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    assert sources, "the sources of the kernels are not beside this file"
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    code = function.__code__.replace(co_freevars=("digest",))
    name, cells = function.__name__, (CellType(digest),)
    return FunctionType(code, function.__globals__, name, closure=cells)


def symbol_address(name):
    """A compiled function that gives the address a symbol has in this process.

    The address is looked up by name when code is linked, so a compilation that was kept by another
    process stays right.
    """

    @intrinsic
    def address(typing):
        def generate(context, builder, signature, arguments):
            word = ir.IntType(64)
            kind = ir.FunctionType(ir.VoidType(), [word])
            module = builder.module
            found = module.globals.get(name) or ir.Function(module, kind, name)
            return builder.ptrtoint(found, word)

        return types.int64(), generate

    return address
