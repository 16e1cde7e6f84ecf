"""glibc's allocator, told what a train step on a CPU needs: the same large pieces of memory, step after step."""

import ctypes
import platform

# Of glibc's mallopt: M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never), M_TOP_PAD, M_ARENA_MAX. Else the memory of a step goes back to
# the system at its end, and comes again page by page: 104,000 page faults and a third of the time of the quickstart's step. One
# arena, because those of other threads than the main one give their memory back whatever the threshold is.
KEEP_FREED_MEMORY = ((-4, 0), (-1, -1), (-2, 2**28), (-8, 1))
LONG_COMPILATION = 1.0  # seconds; of a shorter one too little is left to be worth a look
SMALLEST = 1024  # bytes; glibc finds smaller pieces at once, in lists of one size each


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
    """Makes freed memory stay in the process, and keeps what compilations leave behind out of the steps' way."""
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
    """Takes the free pieces that lie between used memory, so that what is allocated from now on lies behind them.

    XLA's compiler frees tens of thousands of pieces between others that stay. A step whose buffers are sought and cut
    among them takes twice as long as in a process that found its program on disk (docs/log.md). The pieces are never
    given back; their pages are, but for those that they share with what stays.

    Returns:
      How many pieces.
    """
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = _Usage
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    libc.malloc_trim(0)  # gives back the pages of free pieces, too, not of the heap's end alone
    usage = libc.mallinfo2()
    end, remaining = libc.sbrk(0) - usage.keepcost, usage.fordblks - usage.keepcost
    size, pieces = 2**28, 0
    while size >= SMALLEST and remaining > 0:
        piece = libc.malloc(size)
        if piece is None or piece >= end:  # none so large was left between others
            libc.free(piece)
            size = size * 9 // 10
        else:
            remaining -= size
            pieces += 1
    return pieces
