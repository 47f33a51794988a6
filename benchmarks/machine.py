"""What a number depends on beside the code: processor, threads, versions, command."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch


def machine() -> dict[str, object]:
    """Give processor, cores, threads, AMX, versions and the command without its paths."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "amx": any(flag.startswith("amx") for flag in flags),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "script": f"benchmarks/{Path(sys.argv[0]).name}",
    }
