"""Memory of this process on graphics adapters, as Windows tells it: `IDXGIAdapter3::QueryVideoMemoryInfo`.

Interfaces, their numbers and the order of their methods are those of dxgi.h, dxgi1_2.h and dxgi1_4.h in the Windows
SDK. This module has never been executed by its authors, who have no such system; nothing else depends on it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any
from uuid import UUID

_FACTORY1 = UUID("770aae78-f26f-4dba-a829-253c83d1b387")
_ADAPTER3 = UUID("645967a4-1392-4310-a798-8053ce3e93fd")
_QUERY_INTERFACE, _RELEASE = 0, 2
"""Places of methods that every interface has."""
_ENUM_ADAPTERS1 = 12
"""Place in `IDXGIFactory1`: after 3 methods of IUnknown, 4 of IDXGIObject, 5 of IDXGIFactory."""
_QUERY_VIDEO_MEMORY_INFO = 14
"""Place in `IDXGIAdapter3`: after 7 inherited ones, 3 of IDXGIAdapter, 1 each of 1 and 2, and 2 of its own."""
_SEGMENTS = (0, 1)
"""DXGI_MEMORY_SEGMENT_GROUP: local memory, and that of the host which the adapter can use."""


class _VideoMemoryInfo(ctypes.Structure):
    """DXGI_QUERY_VIDEO_MEMORY_INFO, in bytes."""

    _fields_ = (
        ("budget", ctypes.c_uint64),
        ("current_usage", ctypes.c_uint64),
        ("available_for_reservation", ctypes.c_uint64),
        ("current_reservation", ctypes.c_uint64),
    )


def dxgi_figures() -> list[dict[str, Any]] | None:
    """Return for each adapter what this process has of both kinds of memory; None if DXGI is not there."""
    try:
        library: Any = getattr(ctypes, "WinDLL")("dxgi")  # noqa: B009 - known on Windows only
        factory = ctypes.c_void_p()
        failed = library.CreateDXGIFactory1(ctypes.pointer(_guid(_FACTORY1)), ctypes.pointer(factory))
    except (AttributeError, OSError):
        return None
    if failed:
        return None
    try:
        return [_adapter(index, adapter) for index, adapter in enumerate(_adapters(factory))]
    finally:
        _call(factory, _RELEASE)


def _adapters(factory: ctypes.c_void_p) -> Iterator[ctypes.c_void_p]:
    """Yield the adapters as `IDXGIAdapter3`, until the factory says that there is no other one."""
    index = 0
    while True:
        adapter, newer = ctypes.c_void_p(), ctypes.c_void_p()
        if _call(factory, _ENUM_ADAPTERS1, ctypes.c_uint(index), ctypes.pointer(adapter)):
            return
        index += 1
        try:
            failed = _call(adapter, _QUERY_INTERFACE, ctypes.pointer(_guid(_ADAPTER3)), ctypes.pointer(newer))
        finally:
            _call(adapter, _RELEASE)
        if failed:
            continue
        try:
            yield newer
        finally:
            _call(newer, _RELEASE)


def _adapter(index: int, adapter: ctypes.c_void_p) -> dict[str, Any]:
    used, budget = 0, None
    for segment in _SEGMENTS:
        info = _VideoMemoryInfo()
        if _call(adapter, _QUERY_VIDEO_MEMORY_INFO, ctypes.c_uint(0), ctypes.c_int(segment), ctypes.pointer(info)):
            continue
        used += info.current_usage
        budget = info.budget if segment == _SEGMENTS[0] else budget
    return {"device": index, "source": "DXGI", "used": None, "total": budget, "process": used}


def _guid(value: UUID) -> Any:
    return (ctypes.c_ubyte * 16).from_buffer_copy(value.bytes_le)


def _call(instance: ctypes.c_void_p, place: int, *arguments: Any) -> int:
    """Call the method at a place of an interface's table and return its HRESULT: 0 if it succeeded."""
    table = ctypes.cast(instance, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))).contents
    # COM uses the calling convention of 64-bit Windows, of which there is one.
    method = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, *(type(item) for item in arguments))(
        _address(table, place)
    )
    return int(method(instance, *arguments))


def _address(table: Any, place: int) -> int:
    address = table[place]
    assert isinstance(address, int)
    return address
