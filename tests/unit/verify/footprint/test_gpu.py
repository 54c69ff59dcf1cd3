"""Figures of graphics processors, from stand-ins for what drivers offer: no such device is here."""

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptoss_convert.verify.footprint import gpu
from gptoss_convert.verify.footprint.child import DECODE, LOAD, START
from gptoss_convert.verify.footprint.comparison import compare
from gptoss_convert.verify.footprint.dxgi import dxgi_figures
from gptoss_convert.verify.footprint.measurement import Ending, Measurement, PhaseMemory
from gptoss_convert.verify.footprint.prediction import conditions_for, model_for, predict
from gptoss_convert.verify.footprint.profiles import find_budget
from gptoss_convert.verify.footprint.subject import open_subject
from gptoss_convert.verify.footprint.verdict import Fit, judge

GIGABYTE = 10**9


class NvmlError(Exception):
    pass


def nvml(own: int | None) -> SimpleNamespace:
    """A driver with two devices, whose first one this process and another one use."""

    def refuse() -> None:
        raise NvmlError

    processes = [SimpleNamespace(pid=1, usedGpuMemory=5), SimpleNamespace(pid=os.getpid(), usedGpuMemory=own)]
    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=7 + handle, total=100),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [] if handle else processes,
        refuse=refuse,
    )


def read_with(driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(gpu, "find_spec", lambda name: object())
    return gpu.gpu_figures()


def test_nvml_tells_devices_and_the_share_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = read_with(nvml(own=3), monkeypatch)
    assert first == {"device": 0, "source": "NVML", "used": 7, "total": 100, "process": 3}
    assert second == {"device": 1, "source": "NVML", "used": 8, "total": 100, "process": None}


def test_a_driver_that_tells_no_process_leaves_it_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_with(nvml(own=None), monkeypatch)[0]["process"] is None


def test_without_driver_or_library_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    without_driver = nvml(own=3)
    without_driver.nvmlInit = without_driver.refuse
    assert read_with(without_driver, monkeypatch) is None
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert gpu.gpu_figures() is None
    assert dxgi_figures() is None


class Interface:
    """A COM object: a pointer to a table of functions."""

    def __init__(self, size: int, methods: dict[int, tuple[Any, Callable[..., int]]]) -> None:
        self.released = 0

        def release(_this: int) -> int:
            self.released += 1
            return 0

        known = {2: (ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p), release), **methods}
        self._functions = {place: kind(function) for place, (kind, function) in known.items()}
        addresses = [
            ctypes.cast(self._functions[n], ctypes.c_void_p).value if n in known else 0 for n in range(size)
        ]
        self._table = (ctypes.c_void_p * size)(*addresses)
        self._object = ctypes.c_void_p(ctypes.addressof(self._table))
        self.address = ctypes.addressof(self._object)


def test_dxgi_is_asked_by_its_tables_of_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters with 4 and 1 bytes in use, of which the budgets of local memory are 40 and 10."""
    number, pointer = ctypes.c_uint, ctypes.c_void_p
    asking = ctypes.CFUNCTYPE(ctypes.c_int32, pointer, number, ctypes.c_int, pointer)
    querying = ctypes.CFUNCTYPE(ctypes.c_int32, pointer, pointer, pointer)

    def put(place: int, address: int) -> int:
        ctypes.c_void_p.from_address(place).value = address
        return 0

    def adapter(scale: int) -> Interface:
        def tell(_this: int, _node: int, segment: int, place: int) -> int:
            values = (ctypes.c_uint64 * 4).from_address(place)
            values[0], values[1] = (10 * scale, scale) if segment == 0 else (1000, 0)
            return 0

        def query(_this: int, identifier: int, place: int) -> int:
            assert ctypes.string_at(identifier, 4) == bytes.fromhex("a4675964")
            return put(place, made.address)

        made = Interface(15, {0: (querying, query), 14: (asking, tell)})
        return made

    adapters = [adapter(4), adapter(1)]

    def enumerate_adapters(_this: int, index: int, place: int) -> int:
        return put(place, adapters[index].address) if index < len(adapters) else -2005270526

    factory = Interface(13, {12: (ctypes.CFUNCTYPE(ctypes.c_int32, pointer, number, pointer), enumerate_adapters)})
    library = SimpleNamespace(
        CreateDXGIFactory1=lambda identifier, place: put(ctypes.addressof(place.contents), factory.address)
    )
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: library, raising=False)
    assert dxgi_figures() == [
        {"device": 0, "source": "DXGI", "used": None, "total": 40, "process": 4},
        {"device": 1, "source": "DXGI", "used": None, "total": 10, "process": 1},
    ]
    assert [item.released for item in (factory, *adapters)] == [1, 2, 2]


def measured_on_gpu(bare: dict[str, Path], process: list[int | None], used: list[int]) -> Any:
    subject = open_subject(bare["20b"], "gguf")
    model = model_for(subject)
    how = conditions_for(subject, model, device="gpu")
    phases = tuple(
        PhaseMemory(phase=phase, gpu=[{"device": 0, "used": every, "total": 24 * GIGABYTE, "process": own}])
        for phase, own, every in zip((START, LOAD, DECODE), process, used, strict=True)
    )
    result = Measurement(ending=Ending.COMPLETED, conditions=how, prompt=8, answer=8, phases=phases)
    return predict(subject, model, how), result


def test_a_gpu_is_judged_by_what_the_process_has_there(bare: dict[str, Path]) -> None:
    prediction, result = measured_on_gpu(bare, [0, 9 * GIGABYTE, 14 * GIGABYTE], [GIGABYTE] * 3)
    comparison = compare(prediction, result)
    assert comparison is not None
    assert comparison.peak.measured == 14 * GIGABYTE
    assert comparison.error == pytest.approx(prediction.resident / (14 * GIGABYTE) - 1)
    assert judge(find_budget("gpu-16gb"), prediction, None, result).fit is Fit.FITS
    over = judge(find_budget("13.9GB", "gpu"), prediction, None, result)
    assert (over.fit, over.reason) == (Fit.OVER, "14.00 GB measured, 13.90 GB available")
    assert judge(find_budget("13.9GB", "cpu"), prediction, None, result).fit is Fit.FITS


def test_where_processes_are_not_told_apart_the_device_tells_the_difference(bare: dict[str, Path]) -> None:
    _, result = measured_on_gpu(bare, [None] * 3, [GIGABYTE, 9 * GIGABYTE, 14 * GIGABYTE])
    assert result.peak_on_gpu == 13 * GIGABYTE
    assert replace(result, phases=(PhaseMemory(phase=START),)).peak_on_gpu is None
