"""Support: what an algorithm can do, for `jaxrl list` and the README's table."""

from __future__ import annotations

from typing import NamedTuple


class Support(NamedTuple):
    """One row of the compatibility table.

    Attributes:
        description: the algorithm in a few words.
        paper: where it comes from.
        discrete, continuous: action spaces.
        multi_agent: several agents and policies.
        recurrent: LSTM, GRU and custom recurrent models.
    """

    description: str
    paper: str
    discrete: bool
    continuous: bool
    multi_agent: bool
    recurrent: bool
