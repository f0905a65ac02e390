"""Experience whose observations name their place, and a replay buffer in plain Python."""

import numpy as np
import pytest

from jaxrl.data import SampleBatch
from jaxrl.types import FINAL_PAD


class Stream:
    """Columns of environments whose episodes end at random; yields one fragment after the other.

    The observation of step t of episode e is `[e, t]`, the final one `[e, -t]`.
    """

    def __init__(self, width, seed=0, *, masked=False, end=0.2, nested=False):
        self.rng = np.random.default_rng(seed)
        self.width, self.masked, self.end, self.nested = width, masked, end, nested
        self.eps = np.arange(width)
        self.t = np.zeros(width, int)
        self.next_eps = width

    def fragment(self, steps):
        width, rng = self.width, self.rng
        obs = np.full((steps, width, 2), 777, np.int32)
        rewards = rng.integers(-8, 9, (steps, width)).astype(np.float32)
        terminateds, truncateds = np.zeros((2, steps, width), bool)
        eps_id, t = np.full((2, steps, width), -1, np.int32)
        mask = rng.random((steps, width)) < 0.7 if self.masked else np.ones((steps, width), bool)
        finals, index = [], []
        for i in range(steps):
            for b in range(width):
                if not mask[i, b]:
                    continue
                e, s = self.eps[b], self.t[b]
                obs[i, b], eps_id[i, b], t[i, b] = (e, s), e, s
                self.t[b] += 1
                if rng.random() < self.end:
                    (terminateds if rng.random() < 0.5 else truncateds)[i, b] = True
                    finals.append((e, -(s + 1)))
                    index.append((i, b))
                    self.eps[b], self.t[b] = self.next_eps, 0
                    self.next_eps += 1
        pad = int(rng.integers(1, 3))
        columns = {
            "obs": obs,
            "actions": rng.integers(0, 9, (steps, width)).astype(np.int32),
            "rewards": rewards,
            "terminateds": terminateds,
            "truncateds": truncateds,
            "eps_id": eps_id,
            "t": t,
            "agent_index": np.zeros((steps, width), np.int32),
            "unroll_id": np.zeros((steps, width), np.int32),
            "last_obs": np.stack([self.eps, self.t], axis=-1).astype(np.int32),
            "final_obs": np.asarray(finals + [(-9, -9)] * pad, np.int32),
            "final_index": np.asarray(index + [(FINAL_PAD, 0)] * pad, np.int32),
        }
        if self.nested:
            for name in ("obs", "last_obs", "final_obs"):
                columns[name] = {"id": columns[name], "half": (columns[name][..., 0] / 2).astype(np.float32)}
        if self.masked:
            columns["mask"] = mask
        return SampleBatch(columns)


class Naive:
    """Keeps every row in a list, and works out by search what a buffer of `capacity` rows must give."""

    def __init__(self, capacity, n, gamma):
        self.capacity, self.n, self.gamma = capacity, n, gamma
        self.rows, self.place = [], {}

    def add(self, fragment):
        mask = np.asarray(fragment.valid())
        get = {k: np.asarray(fragment[k]) for k in ("eps_id", "t", "rewards", "terminateds", "truncateds", "actions")}
        for i, b in np.argwhere(mask).tolist():
            row = {name: column[i, b].item() for name, column in get.items()}
            self.place[row["eps_id"], row["t"]] = len(self.rows)
            self.rows.append(row)

    def stored(self):
        """Numbers of the rows that are there, by slot."""
        first = max(0, len(self.rows) - self.capacity)
        return {number % self.capacity: number for number in range(first, len(self.rows))}

    def expected(self, number):
        row = self.rows[number]
        e, t = row["eps_id"], row["t"]
        total, m, last = 0.0, 0, row
        while True:
            total += self.gamma**m * last["rewards"]
            m += 1
            if m == self.n or last["terminateds"] or last["truncateds"] or (e, t + m) not in self.place:
                break
            last = self.rows[self.place[e, t + m]]
        ended = last["terminateds"] or last["truncateds"]
        return {
            "obs": [e, t],
            "actions": row["actions"],
            "rewards": total,
            "terminateds": last["terminateds"],
            "truncateds": last["truncateds"],
            "discounts": 0.0 if last["terminateds"] else self.gamma**m,
            "new_obs": [e, -(t + m)] if ended else [e, t + m],
            "eps_id": e,
            "t": t,
        }


@pytest.fixture(scope="session")
def stream():
    return Stream


@pytest.fixture(scope="session")
def naive():
    return Naive


@pytest.fixture(scope="session")
def check_against():
    def check(batch, reference):
        """Every slot's row as a buffer gives it against the plain one's."""
        stored = reference.stored()
        for i, slot in enumerate(batch["batch_indexes"].tolist()):
            for name, value in reference.expected(stored[slot]).items():
                found = batch[name]["id"][i] if isinstance(batch[name], dict) else batch[name][i]
                assert np.asarray(found).tolist() == value, (name, slot, stored[slot])

    return check
