"""Where and how a site computes."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
from fedmed.training.device import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
class Statistics(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Statistics
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
held = libc.malloc(64 << 20)
print(libc.mallinfo2().hblkhd >= 64 << 20)  # whether it was mapped by itself
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")
@pytest.mark.parametrize(("choice", "mapped"), [("keep", "False"), ("default", "True")])
def test_large_blocks_come_from_kept_memory(choice, mapped):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, choice], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == mapped
