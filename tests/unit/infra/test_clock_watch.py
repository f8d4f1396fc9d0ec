"""A wall clock that was set back is noticed; a slow answer is not mistaken for one."""

from burnish.infra.clock_watch import ClockWatch


def test_a_fall_is_told_once() -> None:
    watch = ClockWatch()
    assert watch.fell(1000.0, 10.0, 10.01) == 0
    assert watch.fell(1005.0, 15.0, 15.01) == 0
    assert 3599 < watch.fell(1005.0 + 1 - 3600, 16.0, 16.01) < 3601
    assert watch.fell(1005.0 + 2 - 3600, 17.0, 17.01) == 0


def test_a_slow_answer_is_no_fall_and_hides_none() -> None:
    watch = ClockWatch()
    assert watch.fell(1000.0, 10.0, 10.01) == 0
    assert watch.fell(1001.0, 11.0, 31.0) == 0, "it was read at once, and the answer came 20 s later"
    assert watch.fell(1041.0, 31.0, 51.0) == 0, "the question came late, the answer at once"
    assert 4 < watch.fell(1042.0 - 5, 52.0, 52.01) < 6


def test_going_forward_is_no_fall() -> None:
    watch = ClockWatch()
    assert watch.fell(1000.0, 10.0, 10.01) == 0
    assert watch.fell(5000.0, 11.0, 11.01) == 0
    assert watch.fell(1002.0, 12.0, 12.01) > 3990
