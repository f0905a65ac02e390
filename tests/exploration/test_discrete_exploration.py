"""EpsilonGreedy, PerWorkerEpsilonGreedy and SoftQ: frequencies, log-probabilities, masks, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.distributions import get_dist_class
from jaxrl.exploration import make_exploration, worker_value
from jaxrl.schedules import LinearSchedule
from jaxrl.types import ConfigError, UnsupportedSpaceError

SPACE = spaces.Discrete(4, start=10)
Q = jnp.array([1.0, 4.0, 3.0, -2.0])
N = 8000


def dist_of(q=Q, space: spaces.Space = SPACE, mask=None, rows=N):
    dist_class = get_dist_class(space)
    inputs = jnp.broadcast_to(q, (rows, dist_class.input_size))
    if mask is not None:
        assert dist_class.mask_inputs is not None
        inputs = dist_class.mask_inputs(inputs, jnp.asarray(mask))
    return dist_class(inputs)


def draw(config, coeffs, dist=None, *, space: spaces.Space = SPACE, explore=True, worker=(0, 0)):
    exploration = make_exploration(config, space)
    dist = dist_of() if dist is None else dist
    coeffs = {name: jnp.float32(value) for name, value in {**exploration.coeffs, **coeffs}.items()}
    sample = jax.jit(exploration.sample, static_argnums=5)
    return sample(dist, exploration.init(N, *worker), jax.random.key(3), 0, coeffs, explore)


def shares(actions, n=4, start=10):
    return np.bincount(np.asarray(actions) - start, minlength=n) / len(actions)


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
def test_epsilon_greedy_frequencies_and_log_probabilities(epsilon):
    actions, logp, _ = draw({"type": "EpsilonGreedy"}, {"epsilon": epsilon})
    assert actions.dtype == jnp.int32
    expected = np.full(4, epsilon / 4) + (1 - epsilon) * np.eye(4)[1]
    np.testing.assert_allclose(shares(actions), expected, atol=0.02)
    np.testing.assert_allclose(np.exp(logp), expected[np.asarray(actions) - 10], rtol=1e-5)
    if epsilon == 0.0:
        np.testing.assert_array_equal(actions, np.full(N, 11))


@pytest.mark.parametrize("epsilon", [0.2, 1.0])
def test_epsilon_greedy_never_takes_a_masked_action(epsilon):
    actions, logp, _ = draw({"type": "EpsilonGreedy"}, {"epsilon": epsilon}, dist_of(mask=[True, False, True, False]))
    expected = np.array([epsilon / 2, 0.0, 1 - epsilon / 2, 0.0])
    np.testing.assert_allclose(shares(actions), expected, atol=0.02)
    assert set(np.unique(actions)) == {10, 12}
    np.testing.assert_allclose(np.exp(logp), expected[np.asarray(actions) - 10], rtol=1e-5)


def test_epsilon_greedy_explores_each_component():
    space = spaces.MultiDiscrete([2, 3], start=[5, 0])
    q = jnp.array([0.0, 1.0, 9.0, 8.0, 7.0])
    mask = [True, True, True, False, True]
    actions, logp, _ = draw({"type": "EpsilonGreedy"}, {"epsilon": 0.5}, dist_of(q, space, mask), space=space)
    np.testing.assert_allclose(shares(actions[:, 0], 2, 5), [0.25, 0.75], atol=0.02)
    np.testing.assert_allclose(shares(actions[:, 1], 3, 0), [0.75, 0.0, 0.25], atol=0.02)
    assert set(np.unique(actions[:, 1])) == {0, 2}
    both = np.array([0.25, 0.75])[actions[:, 0] - 5] * np.array([0.75, 0.0, 0.25])[actions[:, 1]]
    np.testing.assert_allclose(np.exp(logp), both, rtol=1e-5)


@pytest.mark.parametrize("kind", ["EpsilonGreedy", "PerWorkerEpsilonGreedy", "SoftQ"])
def test_without_exploration_the_action_is_greedy(kind):
    actions, logp, _ = draw({"type": kind}, {}, explore=False)
    np.testing.assert_array_equal(actions, np.full(N, 11))
    np.testing.assert_array_equal(np.asarray(logp), np.zeros(N))


def test_epsilon_schedule():
    exploration = make_exploration({"type": "EpsilonGreedy"}, SPACE)
    assert exploration.coeffs == {"epsilon": 1.0}
    epsilon = exploration.schedules["epsilon"]
    assert [epsilon(t) for t in (0, 50_000, 100_000, 10**9)] == pytest.approx([1.0, 0.525, 0.05, 0.05])
    options = {"initial_epsilon": 0.5, "final_epsilon": 0.1, "epsilon_timesteps": 100}
    epsilon = make_exploration({"type": "EpsilonGreedy", **options}, SPACE).schedules["epsilon"]
    assert [epsilon(t) for t in (0, 50, 100)] == pytest.approx([0.5, 0.3, 0.1])
    own = {"type": "LinearSchedule", "schedule_timesteps": 10, "initial_p": 0.8, "final_p": 0.2}
    given = make_exploration({"type": "EpsilonGreedy", "epsilon_schedule": own}, SPACE)
    assert given.schedules["epsilon"] == LinearSchedule(10, 0.2, 0.8)
    assert given.coeffs == {"epsilon": 0.8}
    assert make_exploration({"type": "EpsilonGreedy", "epsilon_timesteps": 0}, SPACE).coeffs == {"epsilon": 0.05}


def test_epsilon_changes_without_a_recompile():
    exploration, traces = make_exploration({"type": "EpsilonGreedy"}, SPACE), []

    @jax.jit
    def act(coeffs):
        traces.append(1)
        return exploration.sample(dist_of(), (), jax.random.key(0), 0, coeffs, True)[0]

    taken = [shares(act({"epsilon": jnp.float32(epsilon)}))[1] for epsilon in (0.0, 0.5, 1.0)]
    assert taken == sorted(taken, reverse=True) and len(traces) == 1


def test_values_of_workers_by_hand():
    # Three workers: 0.4^1, 0.4^4.5, 0.4^8.
    assert [worker_value(i, 3) for i in (1, 2, 3)] == pytest.approx([0.4, 0.0161908616, 0.00065536])
    assert worker_value(1, 1) == 0.4
    assert worker_value(0, 3) == 0.0
    assert worker_value(0, 0) is None


@pytest.mark.parametrize(
    ("worker", "epsilon"), [((0, 0), 0.7), ((0, 3), 0.0), ((1, 3), 0.4), ((2, 3), 0.01619), ((1, 1), 0.4)]
)
def test_each_worker_has_its_epsilon(worker, epsilon):
    actions, logp, state = draw({"type": "PerWorkerEpsilonGreedy"}, {"epsilon": 0.7}, worker=worker)
    expected = np.full(4, epsilon / 4) + (1 - epsilon) * np.eye(4)[1]
    np.testing.assert_allclose(shares(actions), expected, atol=0.02)
    np.testing.assert_allclose(np.exp(logp), expected[np.asarray(actions) - 10], rtol=1e-3)
    again = make_exploration({"type": "PerWorkerEpsilonGreedy"}, SPACE).init(N, *worker)
    jax.tree.map(np.testing.assert_array_equal, state, again)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_soft_q_draws_by_the_softmax(temperature):
    actions, logp, _ = draw({"type": "SoftQ", "temperature": temperature}, {})
    expected = np.exp(Q / temperature) / np.exp(Q / temperature).sum()
    np.testing.assert_allclose(shares(actions), expected, atol=0.02)
    np.testing.assert_allclose(np.exp(logp), expected[np.asarray(actions) - 10], rtol=1e-5)


def test_soft_q_never_takes_a_masked_action_however_hot():
    actions, _, _ = draw({"type": "SoftQ", "temperature": 1e8}, {}, dist_of(mask=[True, False, True, False]))
    np.testing.assert_allclose(shares(actions), [0.5, 0.0, 0.5, 0.0], atol=0.02)
    assert set(np.unique(actions)) == {10, 12}


def test_soft_q_takes_a_schedule():
    exploration = make_exploration({"type": "SoftQ", "temperature": [[0, 2.0], [100, 1.0]]}, SPACE)
    assert exploration.coeffs == {"softq_temperature": 2.0}
    assert exploration.schedules["softq_temperature"](50) == 1.5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"type": "EpsilonGreedy", "initial_epsilon": 1.5},
            r"EpsilonGreedy: initial_epsilon: expected a number in \[0, 1\]",
        ),
        ({"type": "EpsilonGreedy", "final_epsilon": "0.1"}, "final_epsilon: .*got '0.1'"),
        ({"type": "EpsilonGreedy", "epsilon_timesteps": -1}, "epsilon_timesteps: expected a number >= 0, got -1"),
        ({"type": "EpsilonGreedy", "epsilon_schedule": "never"}, "epsilon_schedule"),
        ({"type": "PerWorkerEpsilonGreedy", "epsilon": 0.1}, "no option 'epsilon'"),
        ({"type": "SoftQ", "temperature": 0.0}, "temperature: expected a number > 0, got 0.0"),
    ],
)
def test_wrong_options_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        make_exploration(config, SPACE)


@pytest.mark.parametrize("kind", ["EpsilonGreedy", "PerWorkerEpsilonGreedy", "SoftQ"])
def test_continuous_actions_are_refused(kind):
    with pytest.raises(UnsupportedSpaceError, match="expected a Discrete or MultiDiscrete"):
        make_exploration({"type": kind}, spaces.Box(-1.0, 1.0, (2,)))
