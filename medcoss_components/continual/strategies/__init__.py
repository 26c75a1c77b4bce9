"""Rehearsal strategies, one file each; :data:`STRATEGIES` is their registry."""

from __future__ import annotations

from medcoss_components.continual.strategies.base import LossTerm, Strategy
from medcoss_components.continual.strategies.experience_replay import ExperienceReplay
from medcoss_components.continual.strategies.joint import Joint
from medcoss_components.continual.strategies.medcoss import MedCoSS
from medcoss_components.continual.strategies.sequential import Sequential
from medcoss_components.errors import InputError

__all__ = ["STRATEGIES", "LossTerm", "Strategy", "get_strategy"]

STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in (MedCoSS, ExperienceReplay, Sequential, Joint)}


def get_strategy(name: str | Strategy) -> Strategy:
    """A strategy by name, or the object itself.

    Raises:
        InputError: when the name is unknown; the message lists the known ones.
    """
    if isinstance(name, Strategy):
        return name
    if name not in STRATEGIES:
        raise InputError(f"strategy must be one of {', '.join(sorted(STRATEGIES))}, received {name!r}")
    return STRATEGIES[name]()
