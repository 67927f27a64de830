"""Where the time of a pipeline goes: shares that add up, Amdahl's bound, waiting between stages of unlike rates."""

from __future__ import annotations

import math
import threading
import time

import pytest

from isthmus.cost.pipeline import image_stages, profile_pipeline, profile_queued, text_stages
from isthmus.errors import BadInput


def wait(milliseconds):
    def run(value):
        time.sleep(milliseconds / 1e3)
        return value

    return run


def test_shares_add_up_to_the_wall_time():
    # Long beside what a busy machine may put between two stages.
    stages = text_stages(tokenize=wait(20), model=wait(60), pool=wait(20))
    start = time.perf_counter()
    found = profile_pipeline(stages, range(10), rounds=1, warmup=0)
    outside = time.perf_counter() - start
    assert [stage.name for stage in found.stages] == ["tokenize", "model", "pool"]
    assert found.accounted == pytest.approx(1.0, abs=0.05)
    assert sum(stage.seconds for stage in found.stages) == pytest.approx(outside, rel=0.05)
    assert all(stage.seconds >= 10 * least for stage, least in zip(found.stages, (20e-3, 60e-3, 20e-3), strict=True))


def test_values_go_from_stage_to_stage():
    seen = []
    stages = {"double": lambda value: value * 2, "model": lambda value: value + 1, "keep": seen.append}
    profile_pipeline(stages, [1, 2], rounds=1, warmup=0)
    assert seen == [3, 5]
    seen.clear()
    profile_queued(stages, list(range(20)))
    assert seen == [2 * value + 1 for value in range(20)]


def test_amdahl():
    found = profile_pipeline({"decode": wait(3), "model": wait(9)}, range(8), rounds=2)
    share = next(stage.share for stage in found.stages if stage.name == "model")
    assert found.bound == pytest.approx(1 / (1 - share))
    assert found.speedup(1) == pytest.approx(1)
    assert found.speedup(2) == pytest.approx(1 / (1 - share + share / 2))
    assert found.speedup(1e12) == pytest.approx(found.bound, rel=1e-6)
    assert not found.warnings
    with pytest.raises(BadInput, match="above zero"):
        found.speedup(0)


def test_warns_where_compressing_cannot_pay():
    stages = image_stages(decode=wait(40), resize=wait(4), normalise=wait(2), model=lambda value: value)
    for found in (profile_pipeline(stages, range(5), rounds=1), profile_queued(stages, range(12))):
        assert found.bound < 1.1
        assert "cannot pay" in found.warnings[0]
        assert "decode" in found.warnings[0]


def test_only_a_model_is_unbounded():
    assert math.isinf(profile_pipeline({"model": wait(1)}, range(3), rounds=1).bound)
    assert math.isinf(profile_queued({"model": wait(1)}, range(3)).bound)


def test_queues_show_who_waits_for_whom():
    stages = {"quick": wait(3), "model": wait(24), "after": wait(3)}
    found = profile_queued(stages, range(24), size=2)
    quick, model, after = found.stages
    for stage in found.stages:  # what a stage works and what it waits fills the time
        assert stage.seconds + stage.starved + stage.blocked == pytest.approx(found.wall, rel=0.1)
    assert quick.blocked > 0.5 * found.wall  # no room before the model
    assert after.starved > 0.5 * found.wall  # nothing comes out of it
    assert model.share > 0.8
    assert found.wall < 24 * 30e-3  # stages run at once: less than one after the other
    assert found.bound > 2


def test_a_stage_that_fails_ends_the_pipeline():
    def fail(value):
        if value == 3:
            raise RuntimeError("no more")
        return value

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no more"):
        profile_queued({"first": wait(1), "model": fail, "last": wait(1)}, range(50), size=1)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("stages", "items", "said"),
    [
        ({}, [1], "no stages"),
        ({"decode": wait(0)}, [1], "no stage is called 'model'"),
        ({"model": wait(0)}, [], "nothing to serve"),
    ],
)
def test_bad_input(stages, items, said):
    for profile in (profile_pipeline, profile_queued):
        with pytest.raises(BadInput, match=said):
            profile(stages, items)


def test_bad_sizes():
    with pytest.raises(BadInput, match="at least one"):
        profile_queued({"model": wait(0)}, [1], size=0)
    with pytest.raises(BadInput, match="at least one"):
        profile_pipeline({"model": wait(0)}, [1], rounds=0)
