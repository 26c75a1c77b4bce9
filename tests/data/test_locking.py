import logging
import threading
import time

from medcoss_components.data.locking import kept_lock, locked


def test_the_second_waits_and_says_so(tmp_path, caplog):
    path, order = tmp_path / "folder" / "lock", []

    def second():
        with locked(path, what="the store"):
            order.append("second")

    with caplog.at_level(logging.WARNING):
        with locked(path, what="the store"):
            waiting = threading.Thread(target=second)
            waiting.start()
            while not caplog.text:
                time.sleep(0.01)
            order.append("first")
        waiting.join()
    assert order == ["first", "second"]
    assert "the store is being prepared by another process" in caplog.text
    assert not path.exists()


def test_kept_lock_lets_one_in_at_a_time_and_keeps_its_file(tmp_path):
    path, order, asks = tmp_path / "folder" / "lock", [], threading.Event()

    def second():
        asks.set()
        with kept_lock(path):
            order.append("second")

    with kept_lock(path):
        waiting = threading.Thread(target=second)
        waiting.start()
        asks.wait()
        order.append("first")
        assert path.is_file()
    waiting.join()
    assert order == ["first", "second"]
    assert path.is_file()
