"""What this machine has: cores, and how often it was short of memory."""

import os
from contextlib import suppress
from pathlib import Path


def cores() -> int:
    """Return how many cores this process may use, in a container its share of them."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has none
        usable = os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        usable = min(usable, max(1, round(int(quota) / int(period))))
    return usable


def killed_for_memory() -> int:
    """Return how many processes of this machine were ended for want of memory so far."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
