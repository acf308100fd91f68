"""Rounds in turns, on a clock that only the work moves."""

import pytest

from lambdaresnet_zoo.tasks.benchmark.timing import Samples, interleave


class Bench:
    """Work of known cost, in order as it is done."""

    def __init__(self, **costs):
        self.now, self.done = 0.0, []
        self.passes = {name: lambda name=name, cost=cost: self._work(name, cost) for name, cost in costs.items()}

    def _work(self, name, cost):
        self.done.append(name)
        self.now += cost(len(self.done)) if callable(cost) else cost

    def clock(self):
        return self.now


def test_medians_are_the_costs_and_samples_long_enough():
    bench = Bench(a=0.001, b=0.004, c=0.1)
    found = interleave(bench.passes, bench.clock, repeats=5)
    assert {name: round(each.median, 9) for name, each in found.items()} == {"a": 0.001, "b": 0.004, "c": 0.1}
    assert {name: each.iterations for name, each in found.items()} == {"a": 30, "b": 8, "c": 1}
    assert found["b"].times(found["a"]) == pytest.approx([4] * 5)


def test_rounds_take_turns_and_begin_with_another_each():
    bench = Bench(a=0.03, b=0.03, c=0.03)
    interleave(bench.passes, bench.clock, repeats=3)
    assert "".join(bench.done) == "abc" + "aabbcc" + "bbccaa" + "ccaabb"  # warm-up, then rounds


def test_passes_that_come_after_those_of_another_are_not_timed():
    bench = Bench(a=lambda turn: 0.01 * _after_another(bench), b=lambda turn: 0.02 * _after_another(bench))
    found = interleave(bench.passes, bench.clock, repeats=3)
    assert [round(each, 9) for each in found["a"].seconds + found["b"].seconds] == [0.01] * 3 + [0.02] * 3


def test_what_is_slow_needs_no_pass_before_the_one_that_is_timed():
    bench = Bench(a=0.1, b=0.6)
    interleave(bench.passes, bench.clock, repeats=2)
    assert "".join(bench.done) == "ab" + "aab" + "baa"
    bench = Bench(a=2.0, b=2.0)
    interleave(bench.passes, bench.clock, repeats=2)
    assert "".join(bench.done) == "ab" + "ab" + "ba"


def _after_another(bench):
    """Twice the cost for the first pass."""
    return 2 if len(set(bench.done[-2:])) > 1 else 1


def test_what_is_slow_gets_fewer_rounds_and_is_paired_with_the_first():
    bench = Bench(a=0.1, b=0.6, c=3.0)
    found = interleave(bench.passes, bench.clock, repeats=7, seconds=1e9)
    assert {name: len(each.seconds) for name, each in found.items()} == {"a": 7, "b": 3, "c": 1}
    assert found["c"].times(found["a"]) == pytest.approx([30])


def test_time_ends_the_rounds_after_three_but_spares_what_is_slow():
    bench = Bench(a=1.0, b=1.5, c=6.0)
    found = interleave(bench.passes, bench.clock, repeats=7, seconds=5)
    assert {name: len(each.seconds) for name, each in found.items()} == {"a": 3, "b": 3, "c": 1}


def test_a_long_first_pass_is_the_warm_up():
    bench = Bench(a=2.0, b=2.0)
    interleave(bench.passes, bench.clock, repeats=1, first={"a": 2.5, "b": 0.5})
    assert "".join(bench.done) == "b" + "ab"


def test_a_slow_moment_of_the_machine_does_not_count():
    """One round in seven takes ten times as long for all: the ratio of medians and of pairs stays."""
    bench = Bench(a=lambda turn: 0.3 if 9 < turn < 12 else 0.03, b=lambda turn: 0.6 if 9 < turn < 12 else 0.06)
    found = interleave(bench.passes, bench.clock, repeats=7)
    assert found["b"].median / found["a"].median == pytest.approx(2)


def test_pairs_are_of_the_same_round():
    assert Samples([2.0, 6.0], 1).times(Samples([1.0, 2.0, 8.0], 1)) == [2.0, 3.0]
