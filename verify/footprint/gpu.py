"""Memory of graphics processors: of NVIDIA's by NVML, of all on Windows by DXGI, where they are there."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def gpu_figures() -> list[dict[str, Any]] | None:
    """Return for each device its used bytes and those of this process, None for unknown; None if nothing tells.

    In containers and WSL NVIDIA's driver does not tell processes apart: then `process` is None, and what a model
    takes is the difference of `used` between two phases, if nothing else uses the device.
    """
    if sys.platform == "win32":
        from gptoss_convert.verify.footprint.dxgi import dxgi_figures

        return dxgi_figures()
    if find_spec("pynvml") is None:
        return None
    nvml: Any = import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        return [_nvidia_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _nvidia_device(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    own = next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)
    return {
        "device": index,
        "source": "NVML",
        "used": int(memory.used),
        "total": int(memory.total),
        "process": None if own is None else int(own),
    }
