"""Batch-size schedules: their stages in whole updates, and invalid ones."""

import pytest

from smallbatch.config.batch_schedule import MAX_STEPS, ScheduleStage, stages, used_tokens
from smallbatch.errors import UserError


def test_without_a_schedule_a_run_has_one_stage():
    assert stages(4, None, 256, 2048) == (ScheduleStage(4, 0, 2, 0),)


def test_stages_follow_each_other_without_a_gap():
    found = stages(1, "32:2, 128:8", 8, 512)
    assert found == (ScheduleStage(1, 0, 4, 0), ScheduleStage(2, 4, 10, 32), ScheduleStage(8, 10, 16, 128))


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("32", "TOKENS:SIZE"),
        ("32:2,", "TOKENS:SIZE"),
        ("1e3:2", "TOKENS:SIZE"),
        ("0:2", "TOKENS:SIZE"),
        ("64:2,32:4", "to 4 at 32 tokens. Changes must be in increasing order"),
        ("512:2", "before the end of the budget .512"),
        ("36:2", "from 0 to 36 tokens"),
        ("32:16777217", "a batch size above the maximum, 16,777,216"),
        (f"32:{10**20}", "TOKENS:SIZE"),
    ],
)
def test_an_invalid_schedule_is_an_error(schedule, words):
    with pytest.raises(UserError, match=words):
        stages(1, schedule, 8, 512)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 6, 7])
def test_a_budget_is_rounded_up_to_whole_updates(batch_size):
    (stage,) = found = stages(batch_size, None, 256, 2**21)
    used = used_tokens(found, 256)
    assert used == stage.last_step * batch_size * 256
    assert 0 <= used - 2**21 < batch_size * 256


def test_only_the_last_stage_is_rounded_up():
    found = stages(1, "32:7", 8, 512)
    assert found[1] == ScheduleStage(7, 4, 13, 32)
    assert used_tokens(found, 8) == 32 + 9 * 56


def test_a_budget_smaller_than_an_update_is_one_update():
    assert used_tokens(stages(4, None, 256, 1), 256) == 1024


def test_more_updates_than_int32_can_count_are_an_error():
    assert stages(1, None, 1, MAX_STEPS)
    with pytest.raises(UserError, match="at most 2,147,483,647 are allowed"):
        stages(1, None, 1, MAX_STEPS + 1)
