"""A stand-in for a compiler, in processes that are stopped."""

import ctypes


def compile_without_end():
    """Does not look at signals, lets other threads run, and takes no time of the processor."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    library.pthread_mutex_init(mutex, None)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)
