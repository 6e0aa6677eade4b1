"""Where a number comes from: versions, commit, machine, time."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def commit() -> str | None:
    """The library's commit, with "-dirty" if anything tracked was changed since; None if unknown.

    It is known where the library runs from a checkout of the project, and not where it was
    installed from a wheel.
    """
    here = Path(__file__)
    for arguments in (
        ["ls-files", "--error-unmatch", here.name],  # or it lies in somebody else's checkout
        ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    ):
        try:
            answer = subprocess.run(
                ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
    return answer.stdout.strip()


def version() -> str:
    """The version of this library."""
    from coupled_adam import __version__

    return __version__


@cache
def processor() -> str:
    """The model of the processor as the system names it, or its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a number depends on besides data: versions, commit, machine, threads, time.

    Args:
        device: where it is computed, for example "cpu" or "cuda:0".

    Returns:
        A JSON object; ``data/README.md`` says what each field means.
    """
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    together = dist.is_available() and dist.is_initialized()
    return {
        "device": f"{device} ({name})",
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "coupled_adam": version(),
        "commit": commit(),
        "platform": platform.system(),
        "threads": torch.get_num_threads(),
        "processes": dist.get_world_size() if together else 1,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
