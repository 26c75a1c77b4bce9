import logging
import threading
import time

from medcoss_components.data.locking import locked


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
