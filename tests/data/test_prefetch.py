"""Reading ahead: order, errors, and no thread that outlives its iteration."""

from __future__ import annotations

import threading
import weakref

import pytest
import torch

from medcoss_components.data.prefetch import PLANS_PER_THREAD, read_ahead

TIMEOUT = 30  # seconds until a test that hangs fails


def readers():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]


class Meeting:
    """Readers that let none go on before all are there."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count)

    def __call__(self, plan):
        self.barrier.wait(TIMEOUT)
        return plan


def fail_at_three(plan):
    if plan == 3:
        raise KeyError("three")
    return plan


class TestReadAhead:
    @pytest.mark.parametrize("threads", [0, 1, 3])
    def test_order_of_the_plans(self, threads):
        assert list(read_ahead(lambda plan: plan * plan, range(20), threads=threads)) == [n * n for n in range(20)]

    @pytest.mark.parametrize("threads", [0, 2])
    def test_nothing_to_read(self, threads):
        assert list(read_ahead(abs, [], threads=threads)) == [] and readers() == []

    def test_order_is_kept_when_a_later_read_ends_first(self):
        second_is_read = threading.Event()

        def read(plan):
            if plan == 0:
                assert second_is_read.wait(TIMEOUT)
            elif plan == 1:
                second_is_read.set()
            return plan

        assert list(read_ahead(read, range(4), threads=2)) == [0, 1, 2, 3]

    def test_threads_read_at_the_same_time(self):
        assert list(read_ahead(Meeting(3), range(6), threads=3)) == list(range(6))

    def test_without_threads_each_item_is_read_when_asked_for(self):
        seen = []
        items = read_ahead(lambda plan: seen.append((plan, threading.get_ident())), range(3), threads=0)
        next(items)
        assert seen == [(0, threading.get_ident())]

    @pytest.mark.parametrize("threads", [1, 2])
    def test_takes_a_window_of_plans(self, threads):
        plans = iter(range(100))
        items = read_ahead(abs, plans, threads=threads)
        taken = [(next(items), next(items)), next(plans)]
        assert taken == [(0, 1), 2 + PLANS_PER_THREAD * threads]
        items.close()

    @pytest.mark.parametrize("threads", [0, 1, 3])
    def test_an_error_comes_in_its_place_with_its_type(self, threads):
        seen = []
        with pytest.raises(KeyError, match="three"):
            for item in read_ahead(fail_at_three, range(9), threads=threads):
                seen.append(item)
        assert seen == [0, 1, 2] and readers() == []

    def test_no_thread_after_the_last_item_is_handed_out(self):
        items = read_ahead(abs, range(5), threads=2)
        assert next(items) == 0 and readers()
        assert [next(items) for _ in range(4)] == [1, 2, 3, 4]
        assert readers() == []  # before the iteration knows that it ended

    def test_no_thread_after_close(self):
        items = read_ahead(abs, range(100), threads=2)
        next(items)
        items.close()
        assert readers() == []

    def test_no_thread_after_a_break(self):
        for _ in read_ahead(abs, range(100), threads=2):
            break
        assert readers() == []

    def test_no_thread_after_an_error_of_the_caller(self):
        with pytest.raises(ZeroDivisionError):
            for item in read_ahead(abs, range(100), threads=2):
                1 // item
        assert readers() == []

    def test_what_was_not_begun_is_not_read_after_close(self):
        read, may_end = [], threading.Event()

        def wait(plan):
            read.append(plan)
            assert plan == 0 or may_end.wait(TIMEOUT)

        items = read_ahead(wait, range(100), threads=1)
        next(items)
        threading.Timer(0.05, may_end.set).start()
        items.close()
        assert read in ([0], [0, 1])

    def test_an_item_lives_no_longer_than_its_use(self):
        class Item:
            pass

        items = read_ahead(lambda plan: Item(), range(9), threads=1)
        reference = weakref.ref(next(items))
        next(items)  # the thread has let go of the first item when it made the second
        assert reference() is None
        items.close()

    def test_each_thread_starts_as_told(self):
        started = []
        items = read_ahead(Meeting(2), range(4), threads=2, start=lambda: started.append(threading.get_ident()))
        assert list(items) == [0, 1, 2, 3]
        assert len(set(started)) == len(started) == 2 and threading.get_ident() not in started


class TestThreads:
    def test_number_of_threads_of_the_network_stays(self):
        before, count = torch.get_num_threads(), []
        torch.set_num_threads(2)
        try:
            thread = threading.Thread(target=lambda: (torch.set_num_threads(1), count.append(torch.get_num_threads())))
            thread.start(), thread.join()
            assert count == [1] and torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)
