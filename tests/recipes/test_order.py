"""The order of examples follows from the seed and the number of examples seen, and prefetching keeps it."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalities.base import Groups
from recipes.data.order import Order, prefetch


def test_order_is_another_permutation_in_every_epoch_and_with_every_seed() -> None:
    shown = Order(10, seed=3).indices(0, 30)
    epochs = [shown[:10], shown[10:20], shown[20:], Order(10, seed=2).indices(0, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_of_earlier_runs_is_kept() -> None:
    assert Order(10, seed=3).indices(0, 30) == [
        5, 0, 6, 2, 9, 7, 1, 3, 4, 8, 3, 5, 6, 2, 0, 1, 7, 9, 8, 4, 2, 8, 9, 5, 1, 6, 7, 4, 0, 3,
    ]  # fmt: skip
    assert Order(7, seed=1).indices(5, 12) == [0, 6, 0, 4, 5, 2, 3, 6, 1, 5, 1, 0]
    assert Order(100_000, seed=5).indices(99_998, 5) == [70227, 179, 67596, 60039, 44625]
    assert Order(10, 3, Groups((10,), 4)).indices(0, 30) == Order(10, 3).indices(0, 30)


LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=9).filter(any)


@given(LENGTHS, st.integers(1, 5), st.integers(0, 2**31))
def test_order_shows_groups_within_a_window(lengths: list[int], window: int, seed: int) -> None:
    total = sum(lengths)
    order = Order(total, seed, Groups(lengths, window))
    group = [number for number, length in enumerate(lengths) for _ in range(length)]
    for epoch in range(3):
        shown = order.indices(epoch * total, total)
        assert sorted(shown) == list(range(total))
        places = {each: [n for n, item in enumerate(shown) if group[item] == each] for each in set(group)}
        # The last example of a group is shown before any group beyond its window begins.
        for mine in places.values():
            assert sum(other[0] <= mine[-1] and other[-1] >= mine[0] for other in places.values()) <= window


@given(LENGTHS, st.none() | st.integers(1, 5), st.integers(0, 40), st.integers(1, 30))
def test_order_is_a_function_of_the_count(lengths: list[int], window: int | None, start: int, count: int) -> None:
    groups = None if window is None else Groups(lengths, window)
    all_indices = Order(sum(lengths), 1, groups).indices(0, start + count)
    assert Order(sum(lengths), 1, groups).indices(start, count) == all_indices[start:]


def test_order_varies_groups_and_windows_and_mixes_within_a_window() -> None:
    groups = Groups([10] * 20, 3)
    epochs = [Order(200, 0, groups).indices(200 * epoch, 200) for epoch in range(3)]
    epochs.append(Order(200, 1, groups).indices(0, 200))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({frozenset(item // 10 for item in epoch[:30]) for epoch in epochs}) == 4
    assert all(len({item // 10 for item in epoch[:12]}) == 3 for epoch in epochs)
    with pytest.raises(ValueError, match="groups must contain 10 items in total, got 9"):
        Order(10, 0, Groups([4, 5], 2))


@pytest.mark.parametrize("workers", [0, 1, 3, 50])
def test_prefetch_keeps_the_order(workers: int) -> None:
    def fetch(key: int) -> int:
        time.sleep(0.001 * (key % 3))
        return key * key

    assert list(prefetch(fetch, range(20), workers)) == [key * key for key in range(20)]


def test_prefetch_is_bounded_stops_when_left_and_passes_errors_on() -> None:
    fetched, lock = [], threading.Lock()

    def fetch(key: int) -> int:
        with lock:
            fetched.append(key)
        if key == 3:
            raise OSError("broken file")
        return key

    loader = prefetch(fetch, range(1000), 2)
    assert [next(loader), next(loader)] == [0, 1]
    time.sleep(0.05)
    loader.close()  # type: ignore[attr-defined]
    assert len(fetched) <= 6
    loader = prefetch(fetch, range(10), 2)
    assert [next(loader) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="broken file"):
        next(loader)
