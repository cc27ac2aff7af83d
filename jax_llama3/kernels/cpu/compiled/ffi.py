"""XLA's C structs, addressed by plain integers: the buffers of a call, and XLA's threads.

The foreign function interface hands over structs that are read here by their offsets on 64-bit
machines (xla/ffi/api/c_api.h, version 0.3, kept stable by XLA).
"""

from .compiler import compiled
from .memory import call_function, free, load, malloc, store

# The codes of XLA_FFI_DataType.
INT8, BFLOAT16 = 2, 16

# Offsets of the fields of each struct, in bytes.
_EXTENSION, _API, _CONTEXT, _ARGUMENTS, _N_RESULTS, _RESULTS = 8, 16, 24, 72, 96, 112  # CallFrame
_DTYPE, _DATA, _DIMS = 16, 24, 40  # Buffer
_SCHEDULE, _N_THREADS = 136, 144  # Api
_METADATA = 1  # the kind of extension that asks for a version


@compiled
def _enum(word):
    """The value of a C enum, which takes the lower half of its word."""
    return word & 0xFFFFFFFF


@compiled
def argument(frame, index):
    """The buffer of an argument of the call."""
    return load(load(frame + _ARGUMENTS) + 8 * index)


@compiled
def result(frame, index):
    """The buffer of a result of the call."""
    return load(load(frame + _RESULTS) + 8 * index)


@compiled
def n_results(frame):
    """How many results the call has."""
    return load(frame + _N_RESULTS)


@compiled
def data(buffer):
    """The address of a buffer's numbers."""
    return load(buffer + _DATA)


@compiled
def dim(buffer, axis):
    """The length of one axis of a buffer."""
    return load(load(buffer + _DIMS) + 8 * axis)


@compiled
def dtype_code(buffer):
    """The XLA_FFI_DataType of a buffer."""
    return _enum(load(buffer + _DTYPE))


@compiled
def itemsize(code):
    """Bytes of a number of the dtype with this code: bfloat16, int8 or float32."""
    return 2 if code == BFLOAT16 else 1 if code == INT8 else 4


@compiled
def is_metadata_call(frame):
    """Whether XLA only asks which version of its interface a handler is for; if so, this answers."""
    extension = load(frame + _EXTENSION)
    if extension == 0 or _enum(load(extension + 8)) != _METADATA:
        return False
    store(load(extension + 24) + 24, 3 << 32)  # version 0.3
    return True


@compiled
def n_threads(frame):
    """How many threads XLA has: XLA_FFI_ThreadPool_NumThreads."""
    request = malloc(40)
    store(request, 32)
    store(request + 8, 0)
    store(request + 16, load(frame + _CONTEXT))
    store(request + 24, request + 32)  # where the answer goes
    store(request + 32, 1)
    call_function(load(load(frame + _API) + _N_THREADS), request)
    threads = load(request + 32)
    free(request)
    return max(threads, 1)


@compiled
def schedule(frame, task, argument):
    """Let another of XLA's threads call `task`; whether that failed: XLA_FFI_ThreadPool_Schedule."""
    request = malloc(40)
    store(request, 40)
    store(request + 8, 0)
    store(request + 16, load(frame + _CONTEXT))
    store(request + 24, task)
    store(request + 32, argument)
    failed = call_function(load(load(frame + _API) + _SCHEDULE), request)
    free(request)
    return failed != 0
