import threading
import time

import pytest

from recipes.engine.order import Order, prefetch


def test_every_epoch_is_another_permutation() -> None:
    order = Order(10, seed=3)
    shown = order.indices(0, 30)
    epochs = [shown[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_is_a_function_of_the_count_alone() -> None:
    whole = Order(7, seed=1).indices(0, 40)
    for start, count in ((0, 5), (5, 9), (14, 26), (3, 1)):
        assert Order(7, seed=1).indices(start, count) == whole[start : start + count]
    assert Order(7, seed=2).indices(0, 40) != whole


@pytest.mark.parametrize("workers", [0, 1, 3, 50])
def test_prefetch_keeps_the_order(workers: int) -> None:
    def fetch(key: int) -> int:
        time.sleep(0.001 * (key % 3))
        return key * key

    assert list(prefetch(fetch, range(20), workers)) == [key * key for key in range(20)]


def test_prefetch_is_bounded_and_stops_when_left() -> None:
    fetched = []
    lock = threading.Lock()

    def fetch(key: int) -> int:
        with lock:
            fetched.append(key)
        return key

    loader = prefetch(fetch, range(1000), 2)
    assert [next(loader), next(loader)] == [0, 1]
    time.sleep(0.05)
    loader.close()  # type: ignore[attr-defined]
    assert len(fetched) <= 6


def test_prefetch_hands_on_errors() -> None:
    def fetch(key: int) -> int:
        if key == 3:
            raise OSError("broken file")
        return key

    loader = prefetch(fetch, range(10), 2)
    assert [next(loader) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="broken file"):
        next(loader)
