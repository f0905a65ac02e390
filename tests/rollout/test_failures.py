"""The budget of worker restarts: in all, in a minute, and in a row without an answer."""

import pytest

from jaxrl.rollout.failures import FailureBudget, describe
from jaxrl.types import WorkerError


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_restarts_are_counted_until_the_budget_is_spent():
    budget = FailureBudget(2, 100, Clock())
    budget.spend(1, ValueError("a"), answered=True)
    budget.spend(2, ValueError("b"), answered=True)
    assert budget.restarts == 2
    cause = ValueError("c")
    with pytest.raises(
        WorkerError, match=r"worker 1 failed, and max_worker_restarts=2 is spent: ValueError: c"
    ) as caught:
        budget.spend(1, cause, answered=True)
    assert caught.value.__cause__ is cause and budget.restarts == 2


def test_a_storm_ends_the_run_and_a_drizzle_does_not():
    clock = Clock()
    budget = FailureBudget(1000, 3, clock)
    for _ in range(50):
        clock.now += 21.0
        budget.spend(1, ValueError(), answered=True)
    clock.now += 1.0
    with pytest.raises(WorkerError, match="3 workers were restarted within a minute"):
        budget.spend(1, ValueError(), answered=True)


def test_a_worker_that_never_answers_is_given_up():
    budget = FailureBudget(1000, 1000, Clock())
    budget.spend(1, ValueError(), answered=False)
    budget.spend(1, ValueError(), answered=False)
    budget.spend(2, ValueError(), answered=False)  # another worker's
    budget.spend(1, ValueError(), answered=True)  # it had answered: counted anew
    budget.spend(1, ValueError(), answered=False)
    budget.spend(1, ValueError(), answered=False)
    with pytest.raises(WorkerError, match="3 times in a row before it gave a batch"):
        budget.spend(1, ValueError(), answered=False)


def test_errors_are_told_in_one_line():
    assert describe(ValueError("bad\nworse")) == "ValueError: bad"
    remote = 'ray::call() (pid=1)\n  File "x.py", line 1\nValueError: what was raised\n'
    assert describe(RuntimeError(remote)) == "ValueError: what was raised"
    assert describe(RuntimeError()) == "RuntimeError: "
