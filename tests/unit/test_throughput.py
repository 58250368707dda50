"""Samples are few, evenly far apart, and never lie about the first and the last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.throughput import SAMPLES_MOST, Sample, Throughput, bytes_s


def test_as_long_as_there_are_few_all_are_kept() -> None:
    kept = Throughput(1.0)
    for second in range(1, 100):
        kept.add(second, second * 10)
    assert kept.samples == tuple(Sample(float(second), second * 10) for second in range(100))
    assert set(bytes_s(kept.samples)) == {(second + 0.5, 10.0) for second in range(99)}


def test_however_long_it_goes_on_they_are_few_and_evenly_far_apart() -> None:
    kept = Throughput(1.0)
    for second in range(1, 100_001):
        kept.add(second, second)
        assert len(kept.samples) <= SAMPLES_MOST + 1
    assert (kept.samples[0].at_s, kept.samples[-1].at_s) == (0, 100_000)
    gaps = {later.at_s - earlier.at_s for earlier, later in zip(kept.samples, kept.samples[1:-1], strict=False)}
    assert len(gaps) == 1
    assert len(kept.samples) > SAMPLES_MOST // 2 - 2


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1 << 50)), max_size=600))
def test_whatever_is_told_moments_and_bytes_grow(steps: list[tuple[float, int]]) -> None:
    kept, at_s, done = Throughput(1.0), 0.0, 0
    for step_s, step in steps:
        at_s, done = at_s + step_s, done + step
        kept.add(at_s, done)
    samples = kept.samples
    assert samples[0] == Sample(0.0, 0)
    assert [each.at_s for each in samples] == sorted({each.at_s for each in samples})
    assert [each.done_bytes for each in samples] == sorted(each.done_bytes for each in samples)
    assert all(speed >= 0 for _, speed in bytes_s(samples))
