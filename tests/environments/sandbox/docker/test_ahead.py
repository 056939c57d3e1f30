"""What is made ahead of need: used once, thrown away, bounded, and never the reason of an error."""

import contextlib
import itertools
import threading
import time

import pytest

from environments.sandbox.docker.ahead import Ahead


class Factory:
    """Makes numbered things and remembers what became of them."""

    def __init__(self):
        self.made, self.discarded, self.stale, self.failures = [], [], set(), []
        self._numbers = itertools.count()
        self.makers = {}

    def make(self, key):
        if self.failures:
            raise self.failures.pop()
        thing = (key, next(self._numbers))
        self.makers[thing] = threading.current_thread().name
        self.made.append(thing)
        return thing

    def usable(self, thing):
        return thing not in self.stale


@pytest.fixture
def factory():
    return Factory()


@pytest.fixture
def ahead(factory):
    with contextlib.closing(Ahead(factory.make, factory.discarded.append, factory.usable, most=2)) as ahead:
        yield ahead


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_nothing_is_used_twice_and_all_is_discarded(factory, ahead):
    used = []
    for _ in range(5):
        with ahead.lease("a") as thing:
            used.append(thing)
    assert len(set(used)) == 5
    ahead.close()
    assert sorted(factory.discarded) == sorted(factory.made)
    assert len(factory.discarded) == len(set(factory.discarded))


def test_a_key_that_came_before_finds_one_made_in_the_background(factory, ahead):
    for maker in ("MainThread", "MainThread", "ahead", "ahead"):
        with ahead.lease("a") as thing:
            assert factory.makers[thing].startswith(maker)


def test_a_key_that_came_once_has_none_made(factory, ahead):
    for key in "abcdef":
        with ahead.lease(key):
            pass
    ahead.close()
    assert [key for key, _ in factory.made] == list("abcdef")


def test_there_are_no_more_than_in_use_and_the_oldest_of_another_key_goes(factory, ahead):
    for key in ("a", "a", "b", "b", "c", "c"):
        with ahead.lease(key):
            pass
    ahead.close()
    assert len(factory.made) == 9
    assert sorted(factory.discarded) == sorted(factory.made)


def test_what_is_no_longer_usable_is_discarded_and_another_made(factory, ahead):
    for _ in range(2):
        with ahead.lease("a"):
            pass
    wait_until(lambda: len(factory.made) == 3)
    factory.stale.add(stale := factory.made[-1])
    with ahead.lease("a") as thing:
        assert thing != stale
    wait_until(lambda: stale in factory.discarded)


def test_a_failure_in_the_background_is_nobodys_and_one_of_ones_own_is_raised(factory, ahead):
    with ahead.lease("a"):
        pass
    with ahead.lease("a"):
        factory.failures.append(OSError("engine"))  # Either for the one ahead, or for the next.
        wait_until(lambda: not factory.failures or len(factory.made) == 3)
        factory.failures.clear()
    with ahead.lease("a"):
        pass
    ahead.clear()
    factory.failures.append(OSError("engine"))
    with pytest.raises(OSError, match="engine"), ahead.lease("b"):
        pass


def test_what_is_given_back_after_the_end_is_discarded(factory, ahead):
    with ahead.lease("a") as thing:
        ahead.close()
    assert factory.discarded == [thing]


def test_many_threads_get_one_each(factory, ahead):
    seen, errors = [], []

    def work():
        try:
            for _ in range(20):
                with ahead.lease("a") as thing:
                    seen.append(thing)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ahead.close()
    assert (errors, len(seen), len(set(seen))) == ([], 80, 80)
    assert sorted(factory.discarded) == sorted(factory.made)
