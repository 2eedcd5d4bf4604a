"""A growing batch: where it changes, in whole updates, and what it refuses."""

import pytest

from smallbatch.errors import UserError
from smallbatch.phases import Phase, phases


def test_without_a_schedule_a_run_is_one_phase():
    assert phases(4, None, 256, 2048) == (Phase(4, 0, 2, 0),)


def test_phases_follow_each_other_without_a_gap():
    found = phases(1, "32:2, 128:8", 8, 512)
    assert found == (Phase(1, 0, 4, 0), Phase(2, 4, 10, 32), Phase(8, 10, 16, 128))


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("32", "TOKENS:SIZE"),
        ("32:2,", "TOKENS:SIZE"),
        ("1e3:2", "TOKENS:SIZE"),
        ("0:2", "TOKENS:SIZE"),
        ("64:2,32:4", "not after 64"),
        ("512:2", "before the end of the budget, 512"),
        ("36:2", "from 0 to 36 tokens"),
        ("32:7", "from 32 to 512 tokens"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused_with_words(schedule, words):
    with pytest.raises(UserError, match=words):
        phases(1, schedule, 8, 512)
