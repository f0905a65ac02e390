"""Atari games as agents have seen them since DQN: DeepMind's preprocessing around ale-py's emulator.

Mnih et al. 2015, "Human-level control through deep reinforcement learning", Methods, "Preprocessing"
(https://doi.org/10.1038/nature14236), in the form of OpenAI Baselines' and RLlib's `wrap_deepmind`: no-op reset, frame
skip with the maximum of the last two frames, episodic life, fire reset, 84x84 grey frames, stacked by four. Only the
reward's sign, which is for learning alone, is not the environment's business (`clip_rewards`).
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from jaxrl.envs.env_context import EnvContext
from jaxrl.envs.vector_env import EPISODE_CONTINUES
from jaxrl.types import ConfigError

INSTALL = "Atari needs `pip install 'jaxrl[atari]'`"

_ENTRY_POINT = "ale_py.env:AtariEnv"
_PREPROCESSING = "preprocessing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtariOptions:
    """What `env_config` may say about the preprocessing; its other entries go to `gymnasium.make`.

    Attributes:
        frame_skip: frames that each action is repeated for; the observation is the maximum of the last two.
        noop_max: a game starts with 1 to so many frames without action; 0: none.
        episodic_life: a lost life ends the episode for learning, while results count whole games.
        fire_reset: press FIRE, then the next action, where the game waits for it at the start of each life.
        screen_size: height and width of the frames.
        frame_stack: frames of an observation.
        repeat_action_probability: of each frame to be played with the action of the frame before ("sticky actions",
            Machado et al. 2018, https://doi.org/10.1613/jair.5699); None: the id's, 0.25 for `ALE/...-v5` and `-v0`.
    """

    frame_skip: int = 4
    noop_max: int = 30
    episodic_life: bool = True
    fire_reset: bool = True
    screen_size: int = 84
    frame_stack: int = 4
    repeat_action_probability: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, low = getattr(self, field.name), 0 if field.name == "noop_max" else 1
            if isinstance(field.default, bool):
                good, expected = isinstance(value, bool), "true or false"
            elif field.default is None:
                good, expected = value is None or (_is_number(value) and 0 <= value < 1), "a probability below 1"
            else:
                good, expected = (
                    isinstance(value, int) and _is_number(value) and value >= low,
                    f"a whole number >= {low}",
                )
            if not good:
                raise ConfigError(f"env_config.{field.name}: expected {expected}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class AtariCreator:
    """Creates an Atari game from an EnvContext: preprocessed, or raw with `env_config={"preprocessing": None}`.

    Args:
        gym_id: a registered id. Its game and its sticky actions count; frames are skipped by the preprocessing alone.
    """

    def __init__(self, gym_id: str) -> None:
        self.gym_id = gym_id

    def __call__(self, context: EnvContext) -> gym.Env:
        """Creates the game.

        Raises:
            ConfigError: an option is wrong, or does not go with the preprocessing.
        """
        ale_py, _ = import_ale()
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else it greets on stderr
        rest = {"disable_env_checker": True, **context}
        if not is_preprocessed(rest):
            rest.pop(_PREPROCESSING)
            return gym.make(self.gym_id, **rest)
        rest.pop(_PREPROCESSING, None)
        names = [field.name for field in dataclasses.fields(AtariOptions)]
        options = AtariOptions(**{name: rest.pop(name) for name in names if name in rest})
        for name, instead in _CONFLICTS.items():
            if name in rest:
                raise ConfigError(
                    f"env_config.{name}: {self.gym_id} is preprocessed; {instead}, or set env_config.preprocessing to "
                    "None for the game as gymnasium.make gives it"
                )
        if options.repeat_action_probability is None:
            sticky = gym.spec(self.gym_id).kwargs.get("repeat_action_probability", 0.0)
            options = dataclasses.replace(options, repeat_action_probability=sticky)
        # Without gymnasium's own wrappers: they would count frames, and the emulator is driven directly.
        env = gym.make(self.gym_id, frameskip=1, repeat_action_probability=0.0, **rest)
        return DeepMindAtari(env.unwrapped, options)


_CONFLICTS: Mapping[str, str] = {
    "frameskip": "set frame_skip",
    "obs_type": "its observations are grey frames",
    "sound_obs": "its observations are grey frames",
    "continuous": "its actions are discrete",
    "max_episode_steps": "set max_num_frames_per_episode, or the option horizon",
}


class DeepMindAtari(gym.Wrapper):
    """A preprocessed game: uint8 observations `[84, 84, 4]`, the newest frame last.

    Every episode starts with its first frame repeated, the one after a lost life too, so that stacks follow from single
    frames and the starts of episodes. With `episodic_life` a lost life terminates the episode, and `reset` goes on with
    the game; both infos then hold `EPISODE_CONTINUES`. A reset with a seed, or in the middle of a life, starts a new
    game.

    Rewards are the game's. What it gives during steps that `reset` takes comes with the next step, so that the rewards
    of all lives sum to the score.

    Args:
        env: ale-py's `AtariEnv` with `frameskip=1` and `repeat_action_probability=0`, unwrapped. Sticky actions are
            this wrapper's: a saved state of the emulator has its random state, but not the action that may be repeated.
        options: the preprocessing; its `repeat_action_probability` None counts as 0.

    Example:
        >>> env = AtariCreator("ALE/Breakout-v5")(EnvContext({"frame_skip": 4}))
        >>> env.reset(seed=0)[0].shape
        (84, 84, 4)
    """

    def __init__(self, env: gym.Env, options: AtariOptions | None = None) -> None:
        super().__init__(env)
        self.options = options = options or AtariOptions()
        game: Any = env.unwrapped
        ale_py, cv2 = import_ale()
        self._state_type, self._resize, self._area = ale_py.ALEState, cv2.resize, cv2.INTER_AREA
        self._ale = game.ale
        meanings: list[str] = game.get_action_meanings()
        actions = ale_py.Action.__members__
        self._buttons = list(actions.values())
        self._actions = [actions[name] for name in meanings]
        self._noop = self._last = actions["NOOP"]
        self._sticky = options.repeat_action_probability or 0.0
        # Baselines' FireResetEnv: the game starts with FIRE, some then with the action after it.
        self._starters = self._actions[1:3] if options.fire_reset and meanings[1:2] == ["FIRE"] else []
        height, width = self._ale.getScreenDims()
        self._screens = np.zeros((2, height, width), np.uint8)
        size, depth = options.screen_size, options.frame_stack
        self.observation_space = spaces.Box(0, 255, (size, size, depth), np.uint8)
        self._stack = np.zeros((size, size, depth), np.uint8)
        self._lives = 0
        self._continues = False
        self._carried = 0.0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Repeats the action for `frame_skip` frames."""
        ale = self._ale
        reward, self._carried = self._carried + self._act(self._actions[action]), 0.0
        self._push(self._frame())
        over, truncated, lives = ale.game_over(with_truncation=False), ale.game_truncated(), ale.lives()
        # Some games show no lives for a while before they are over: that end is the game's own.
        lost = self.options.episodic_life and 0 < lives < self._lives and not (over or truncated)
        self._lives, self._continues = lives, lost
        info = {"lives": lives, EPISODE_CONTINUES: True} if lost else {"lives": lives}
        return self._stack, reward, over or lost, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Goes on with the game after a lost life, else starts a new one."""
        self._carried = 0.0
        going_on = self._continues and seed is None
        if going_on:
            # As in Baselines, one step gets the game out of the state in which the life was lost.
            self._carried += self._act(self._noop)
            going_on = not self._ale.game_over() and self._start_life()
        if not going_on:
            self._carried = 0.0
            self._new_game(seed, options)
        self._lives, self._continues = self._ale.lives(), False
        self._stack = np.repeat(self._frame()[..., None], self.options.frame_stack, axis=-1)
        return self._stack, {"lives": self._lives, EPISODE_CONTINUES: True} if going_on else {"lives": self._lives}

    def _new_game(self, seed: int | None, options: dict[str, Any] | None) -> None:
        ale = self._ale
        self._last = self._noop
        self.env.reset(seed=seed, options=options)
        if self.options.noop_max:
            for _ in range(int(self.env.unwrapped.np_random.integers(1, self.options.noop_max + 1))):
                self._carried += ale.act(self._noop)
                if ale.game_over():
                    self._restart()
        ale.getScreenGrayscale(self._screens[0])
        self._screens[1] = 0
        if not self._start_life():
            self._restart()
            ale.getScreenGrayscale(self._screens[0])
            self._screens[1] = 0

    def _restart(self) -> None:
        self.env.reset()
        self._last, self._carried = self._noop, 0.0

    def _start_life(self) -> bool:
        """Presses what starts a life; False where the game is over before it began."""
        for action in self._starters:
            self._carried += self._act(action)
            if self._ale.game_over():
                return False
        return True

    def _act(self, action: Any) -> float:
        """Repeats an action, and looks at the last two frames."""
        ale, screens = self._ale, self._screens
        skip, reward = self.options.frame_skip, 0.0
        repeats = self.env.unwrapped.np_random.random(skip) < self._sticky if self._sticky else None
        screens[1] = 0
        for k in range(skip):
            if repeats is None or not repeats[k]:
                self._last = action
            reward += ale.act(self._last)
            if ale.game_over():
                break
            if k == skip - 2:
                ale.getScreenGrayscale(screens[1])
        ale.getScreenGrayscale(screens[0])
        return reward

    def _frame(self) -> np.ndarray:
        np.maximum(self._screens[0], self._screens[1], out=self._screens[0])
        size = self.options.screen_size
        return self._resize(self._screens[0], (size, size), interpolation=self._area)

    def _push(self, frame: np.ndarray) -> None:
        # A new array: whoever holds the last observation keeps it. Moving all bytes by one moves each frame to the
        # channel before its own.
        stack = np.empty_like(self._stack)
        stack.reshape(-1)[:-1] = self._stack.reshape(-1)[1:]
        stack[..., -1] = frame
        self._stack = stack

    # ---- state

    def get_state(self) -> dict[str, Any]:
        """The emulator (its random state included) and what is kept beside it, without pickles."""
        saved = self._ale.cloneState(include_rng=True).serialize()
        return {
            "emulator": np.frombuffer(saved, np.uint8),
            "stack": self._stack.copy(),
            "action": int(self._last.value),
            "lives": self._lives,
            "continues": self._continues,
            "carried": self._carried,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where `get_state` was called.

        Raises:
            ValueError: the state is another preprocessing's.
        """
        stack = np.asarray(state["stack"], np.uint8)
        if stack.shape != self._stack.shape:
            raise ValueError(f"expected frames {self._stack.shape}, got {stack.shape}")
        saved = np.asarray(state["emulator"], np.uint8).tobytes()
        self._ale.restoreState(self._state_type(saved))
        self._stack = stack.copy()
        self._last = next(action for action in self._buttons if action.value == state["action"])
        self._lives, self._carried = int(state["lives"]), float(state["carried"])
        self._continues = bool(state["continues"])


# ---- names


def import_ale() -> tuple[Any, Any]:
    """Imports `(ale_py, cv2)`; with the first come the ids.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        return importlib.import_module("ale_py"), importlib.import_module("cv2")
    except ImportError as error:
        raise ConfigError(f"env: {INSTALL} (ale-py and opencv-python-headless): {error}") from error


def atari_id(name: str) -> str | None:
    """The registered id of an Atari game (`ALE/Pong-v5`, `PongNoFrameskip-v4`), or None where the name is no such.

    Raises:
        ConfigError: it is one, by its form, and the extra is not installed.

    Example:
        >>> atari_id("ale_py:ALE/Pong-v5"), atari_id("CartPole-v1")
        ('ALE/Pong-v5', None)
    """
    name = name.removeprefix("ale_py:")
    if name.startswith("ALE/") or re.fullmatch(r"\w+NoFrameskip-v\d+", name):
        import_ale()
    elif name not in gym.registry and re.fullmatch(r"[A-Z]\w+-v[04]", name) and importlib.util.find_spec("ale_py"):
        importlib.import_module("ale_py")
    spec = gym.registry.get(name)
    return name if spec is not None and spec.entry_point == _ENTRY_POINT else None


def is_preprocessed(env_config: Mapping[str, Any]) -> bool:
    """Whether an Atari id gets the preprocessing.

    Raises:
        ConfigError: `preprocessing` is neither "deepmind" nor None.
    """
    chosen = env_config.get(_PREPROCESSING, "deepmind")
    if chosen not in ("deepmind", None):
        raise ConfigError(f"env_config.{_PREPROCESSING}: expected 'deepmind' or None, got {chosen!r}")
    return chosen == "deepmind"
