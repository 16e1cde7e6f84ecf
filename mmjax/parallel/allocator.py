"""Settings of glibc's allocator for training on CPUs, where every step allocates the same large buffers."""

import ctypes
import platform

# Arguments of mallopt: M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never), M_TOP_PAD, M_ARENA_MAX. By default glibc returns the memory of
# a step to the system and faults it in again page by page: 104,000 page faults and a third of the quickstart's step time.
# There is one arena, because the arenas of other threads ignore the threshold.
KEEP_FREED_MEMORY = ((-4, 0), (-1, -1), (-2, 2**28), (-8, 1))
LONG_COMPILATION = 1.0  # seconds; a shorter compilation leaves few free chunks
SMALLEST = 1024  # bytes; glibc finds smaller chunks quickly, in lists by size


class _Usage(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def keep_freed_memory() -> None:
    """Keeps freed memory in the process, and calls `set_aside_pieces` after each long compilation."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    for setting in KEEP_FREED_MEMORY:
        libc.mallopt(*setting)
    if not hasattr(libc, "mallinfo2"):  # before glibc 2.33
        return
    import jax.monitoring

    def listen(event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and seconds > LONG_COMPILATION:
            set_aside_pieces()

    jax.monitoring.register_event_duration_secs_listener(listen)


def set_aside_pieces() -> int:
    """Allocates all free chunks between used memory, so that later allocations use the end of the heap.

    XLA's compiler leaves tens of thousands of free chunks between used ones. A step that allocates its buffers from
    them takes twice as long as in a process that loaded its program from disk (docs/log.md). The chunks are never
    freed. Their pages are returned to the system, except pages shared with used memory.

    Returns:
      The number of chunks.
    """
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = _Usage
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    libc.malloc_trim(0)  # also returns pages inside the heap, not only at its end
    usage = libc.mallinfo2()
    end, remaining = libc.sbrk(0) - usage.keepcost, usage.fordblks - usage.keepcost
    size, pieces = 2**28, 0
    while size >= SMALLEST and remaining > 0:
        piece = libc.malloc(size)
        if piece is None or piece >= end:  # no free chunk of this size is left below the end of the heap
            libc.free(piece)
            size = size * 9 // 10
        else:
            remaining -= size
            pieces += 1
    return pieces
