"""How Python, torch and their dependents say that memory is out."""

import errno
import re

# torch, on CPU and GPU, and its dependents raise RuntimeError or a subclass of it; safetensors' readers write the system's words.
WORDS = re.compile(
    r"OutOfMemoryError|can't allocate memory|Cannot allocate memory|CUDA out of memory|^ArrayMemoryError|std::bad_alloc"
)


def out_of_memory(error: Exception) -> bool:
    """Return whether an exception says that memory is out."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return bool(WORDS.search(f"{type(error).__name__}: {error}"))
