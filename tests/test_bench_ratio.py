"""Ratios of speeds: round by round, with an interval."""

from dataclasses import replace

import pytest

from fastgraph.bench.ratio import Ratio, speed_ratio
from tests.bench_samples import timing


def test_rounds_belong_together() -> None:
    """A machine that is ten times as slow in half of the rounds moves both alike."""
    ours = replace(timing(1.0), round_medians_s=(1.0, 10.0, 1.0, 10.0, 1.0))
    peer = replace(timing(2.0), round_medians_s=(2.0, 20.0, 2.0, 20.0, 2.0))
    assert speed_ratio(ours, peer) == Ratio(2.0, 2.0, 2.0)


def test_the_interval_is_as_wide_as_the_rounds_differ() -> None:
    ours = replace(timing(1.0), round_medians_s=(1.0,) * 9)
    narrow = speed_ratio(ours, timing(2.0, spread=0.01))
    wide = speed_ratio(ours, timing(2.0, spread=0.3))
    for ratio in (narrow, wide):
        assert ratio.value == pytest.approx(2.0)
        assert ratio.low < ratio.value < ratio.high
    assert narrow.high - narrow.low < 0.05 < 0.3 < wide.high - wide.low


def test_who_sat_out_is_compared_in_its_own_rounds() -> None:
    ours = replace(timing(1.0), round_medians_s=(1.0, 1.0, 1.0, 7.0, 7.0, 7.0))
    slow = replace(timing(3.0), round_medians_s=(3.0, 3.0, 3.0))
    assert speed_ratio(ours, slow).value == 3.0
    assert speed_ratio(slow, ours).value == pytest.approx(1 / 3)


def test_several_processes_are_compared_by_what_they_do_together() -> None:
    ours = replace(timing(1.0), round_calls_per_s=(200.0,) * 9)
    peer = replace(timing(1.0), round_calls_per_s=(50.0,) * 9)
    assert speed_ratio(ours, peer).value == pytest.approx(4.0)
    assert ours.calls_per_s == 200
    assert timing(0.5).calls_per_s == 2


def test_a_ratio_stands_with_its_interval() -> None:
    assert str(Ratio(1.55, 1.5249, 1.58)) == "1.55 (1.52-1.58)"
    assert str(Ratio(1.0, 1.0, 1.0)) == "1.00"  # with itself
