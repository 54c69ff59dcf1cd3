"""Memory of graphics processors, where NVIDIA's library tells it."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def gpu_figures() -> list[dict[str, Any]] | None:
    """Return for each NVIDIA device its used bytes and those of this process; None without pynvml or a driver.

    In containers and WSL the driver does not tell processes apart: then `process` is None, and what a model takes
    is the difference of `used` between two phases, if nothing else uses the device.
    """
    if find_spec("pynvml") is None:
        return None
    nvml: Any = import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        return [_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _device(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    own = [
        process.usedGpuMemory
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        if process.pid == os.getpid()
    ]
    return {
        "device": index,
        "used": int(memory.used),
        "total": int(memory.total),
        "process": int(own[0]) if own and own[0] is not None else None,
    }
