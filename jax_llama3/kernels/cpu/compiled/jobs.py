"""The work of one call, shared out to XLA's threads chunk by chunk.

A job is a piece of memory: the fields here, then the kernel's own. Every thread that works on it holds
a reference, because a thread may come so late that the call is over; the last one frees the memory.
"""

from .compiler import compiled
from .ffi import schedule
from .memory import fetch_add, free, load, malloc, store

_NEXT, _DONE, _REFERENCES, _CHUNKS, JOB_BYTES = range(0, 40, 8)


@compiled
def allocate_job(nbytes):
    """Memory for a job of `nbytes`, the first JOB_BYTES included."""
    return malloc(nbytes)


@compiled
def start_workers(frame, task, job, chunks, threads, min_helpers):
    """Have other threads call `task` on the job: `threads` work on it, with this one, if chunks suffice.

    At least `min_helpers` others are called, even if no chunk is left for them. `task` takes chunks
    until none is left and releases the job.
    """
    store(job + _NEXT, 0)
    store(job + _DONE, 0)
    store(job + _CHUNKS, chunks)
    helpers = max(min(threads, chunks) - 1, min_helpers)
    store(job + _REFERENCES, helpers + 1)
    for _ in range(helpers):
        if schedule(frame, task, job):
            release(job)


@compiled
def next_chunk(job):
    """The next chunk that no thread has taken; -1 if none is left."""
    chunk = fetch_add(job + _NEXT, 1)
    return chunk if chunk < load(job + _CHUNKS) else -1


@compiled
def chunk_done(job):
    """Count a chunk as done."""
    fetch_add(job + _DONE, 1)


@compiled
def wait_for_chunks(job, chunks):
    """Wait until so many chunks are done.

    The caller knows that all of them have been taken, so other threads are at work on the rest.
    """
    while fetch_add(job + _DONE, 0) < chunks:
        pass


@compiled
def wait_for_all(job):
    """Wait until all chunks are done."""
    wait_for_chunks(job, load(job + _CHUNKS))


@compiled
def release(job):
    """Give up this thread's reference; the last one frees the job."""
    if fetch_add(job + _REFERENCES, -1) == 1:
        free(job)
