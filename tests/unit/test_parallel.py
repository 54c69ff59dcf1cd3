"""Work on a stream of items."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gptoss_convert.parallel import in_order


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.01 * (5 - item))
        return item * item

    with ThreadPoolExecutor(5) as pool:
        assert list(in_order(pool, 5, slow_at_first, range(5))) == [(i, i * i) for i in range(5)]


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    with ThreadPoolExecutor(2) as pool:
        results = in_order(pool, 2, str, items())
        assert next(results) == (0, "0")
        assert len(taken) == 5
        results.close()


def test_what_has_not_begun_when_one_fails_is_not_done() -> None:
    failed, done = threading.Event(), []

    def work(item: int) -> None:
        if item == 0:
            raise ValueError("the first one")
        failed.wait(10)
        done.append(item)

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="the first one"):
            list(in_order(pool, 1, work, range(3)))
        failed.set()
    assert 2 not in done
