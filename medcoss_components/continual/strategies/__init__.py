"""Rehearsal strategies, one file each; :data:`STRATEGIES` is their registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medcoss_components.continual.strategies.base import LossTerm, Strategy
from medcoss_components.continual.strategies.cassle import CaSSLe
from medcoss_components.continual.strategies.ewc import EWC
from medcoss_components.continual.strategies.experience_replay import ExperienceReplay
from medcoss_components.continual.strategies.joint import Joint
from medcoss_components.continual.strategies.medcoss import MedCoSS
from medcoss_components.continual.strategies.medcoss_variants import (
    LargeBuffer,
    RandomExemplars,
    ReversedStages,
    SmallBuffer,
    TeacherInTrainingMode,
    WithoutMixup,
)
from medcoss_components.continual.strategies.sequential import Sequential
from medcoss_components.errors import InputError

__all__ = ["STRATEGIES", "LossTerm", "Strategy", "get_strategy"]

METHODS: tuple[type[Strategy], ...] = (MedCoSS, ExperienceReplay, Sequential, Joint, EWC, CaSSLe)
VARIANTS: tuple[type[Strategy], ...] = (
    WithoutMixup,
    RandomExemplars,
    SmallBuffer,
    LargeBuffer,
    TeacherInTrainingMode,
    ReversedStages,
)
STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in (*METHODS, *VARIANTS)}
OPTIONS = frozenset(option for kind in STRATEGIES.values() for option in kind.options)
"""Every setting that some strategy takes."""


def get_strategy(name: str | Strategy, options: Mapping[str, Any] | None = None) -> Strategy:
    """A strategy by name, or the object itself.

    Args:
        name: see :data:`STRATEGIES`.
        options: settings of strategies by name, None for a strategy's own value; those that belong to another strategy
            are not looked at, so that one overlay key chooses the strategy.

    Raises:
        InputError: when the name is unknown, the message lists the known ones; or no strategy has such an option.
    """
    given = dict(options or {})
    unknown = sorted(set(given) - OPTIONS)
    if unknown:
        raise InputError(f"strategy_options: no strategy has {', '.join(unknown)}; use {', '.join(sorted(OPTIONS))}")
    if isinstance(name, Strategy):
        return name
    if name not in STRATEGIES:
        raise InputError(f"strategy must be one of {', '.join(sorted(STRATEGIES))}, received {name!r}")
    kind = STRATEGIES[name]
    return kind(**{key: value for key, value in given.items() if key in kind.options and value is not None})
