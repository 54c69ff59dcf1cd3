"""Work on a stream of items, several at a time, with results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    pool: Executor, jobs: int, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with the result of `function`, which runs in `pool`, in the order of `items`.

    No more than `2 * jobs` items are taken beyond the one that is waited for, so a long stream takes no memory.
    What has not begun when the caller stops, or when `function` raises, is not done.
    """
    pending: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > 2 * jobs:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())
    finally:
        for _, future in pending:
            future.cancel()


def _finished(item: Item, future: Future[Result]) -> tuple[Item, Result]:
    return item, future.result()
