"""Who is asked for one call, and in which order. Pure."""

from burnish.platform.integrator.repeating import MOST_TRIES, Asked

AB, ABC = frozenset("ab"), frozenset("abc")


def asked(*component_ids: str) -> Asked:
    found = Asked()
    for one in component_ids[:-1]:
        found.begin(one)
        found.give_up()
        found.go_on(AB)
    found.begin(component_ids[-1])
    return found


def test_nobody_is_asked_twice_while_somebody_was_not_asked() -> None:
    found = Asked()
    found.begin("a")
    assert found.others(ABC) == {"b", "c"}
    found.give_up()
    found.go_on(ABC)
    assert found.barred == {"a"}
    found.begin("b")
    assert found.others(ABC) == {"a", "c"}, "who was given up may be asked again"
    found.go_on(ABC)
    assert found.barred == {"a", "b"}, "but only once everybody was asked"


def test_whoever_was_given_up_is_asked_again_instead_of_the_last() -> None:
    found = asked("a", "b")
    assert found.others(AB) == {"a"}
    found.give_up()
    found.go_on(AB)
    assert found.barred == {"b"}


def test_who_refused_is_not_asked_again() -> None:
    found = Asked()
    found.begin("a")  # it refused
    found.go_on(AB)
    found.begin("b")
    assert not found.others(AB)


def test_the_last_try_goes_to_whoever_is_best_and_lasts() -> None:
    found = asked(*"abab"[: MOST_TRIES - 1])
    found.give_up()
    found.go_on(AB)
    assert found.barred == frozenset()
    found.begin("b")
    assert not found.others(AB)


def test_each_is_waited_for_longer_than_the_one_before() -> None:
    assert [asked(*"aba"[:tries]).patience_factor for tries in (1, 2, 3)] == [1, 2, 4]


def test_who_came_since_the_call_began_is_asked_and_who_went_is_not() -> None:
    found = asked("a", "b")
    assert found.others(frozenset("bc")) == {"c"}
