import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalities.base import Groups
from recipes.data.order import Order, prefetch


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


def test_the_order_of_runs_that_began_before_is_kept() -> None:
    assert Order(10, seed=3).indices(0, 30) == [
        5, 0, 6, 2, 9, 7, 1, 3, 4, 8, 3, 5, 6, 2, 0, 1, 7, 9, 8, 4, 2, 8, 9, 5, 1, 6, 7, 4, 0, 3,
    ]  # fmt: skip
    assert Order(7, seed=1).indices(5, 12) == [0, 6, 0, 4, 5, 2, 3, 6, 1, 5, 1, 0]
    assert Order(100_000, seed=5).indices(99_998, 5) == [70227, 179, 67596, 60039, 44625]
    assert Order(10, 3, Groups((10,), 4)).indices(0, 30) == Order(10, 3).indices(0, 30)


LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=9).filter(any)


@given(LENGTHS, st.integers(1, 5), st.integers(0, 2**31))
def test_groups_are_shown_a_window_at_a_time(lengths: list[int], window: int, seed: int) -> None:
    total = sum(lengths)
    order = Order(total, seed, Groups(lengths, window))
    group = [number for number, length in enumerate(lengths) for _ in range(length)]
    for epoch in range(3):
        shown = order.indices(epoch * total, total)
        assert sorted(shown) == list(range(total))
        met = list(dict.fromkeys(group[item] for item in shown))
        # A group is left for good before any beyond the window of its own begins.
        first = {each: min(n for n, item in enumerate(shown) if group[item] == each) for each in met}
        last = {each: max(n for n, item in enumerate(shown) if group[item] == each) for each in met}
        for each in met:
            assert sum(first[other] <= last[each] and last[other] >= first[each] for other in met) <= window


@given(LENGTHS, st.integers(1, 5), st.integers(0, 40), st.integers(1, 30))
def test_groups_leave_the_order_a_function_of_the_count(
    lengths: list[int], window: int, start: int, count: int
) -> None:
    groups = Groups(lengths, window)
    whole = Order(sum(lengths), 1, groups).indices(0, start + count)
    assert Order(sum(lengths), 1, groups).indices(start, count) == whole[start:]


def test_groups_and_windows_change_from_epoch_to_epoch_and_with_the_seed() -> None:
    groups = Groups([10] * 20, 3)
    epochs = [Order(200, 0, groups).indices(200 * epoch, 200) for epoch in range(3)] + [
        Order(200, 1, groups).indices(0, 200)
    ]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({frozenset(item // 10 for item in epoch[:30]) for epoch in epochs}) == 4
    # Within a window, examples of its three groups are mixed.
    assert all(len({item // 10 for item in epoch[:12]}) == 3 for epoch in epochs)


def test_groups_that_are_not_the_data_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 9 items in all cannot order 10"):
        Order(10, 0, Groups([4, 5], 2))


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
