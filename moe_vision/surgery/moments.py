"""Carries the state of an optimizer along: its moments are cut as the weights are."""

import dataclasses
from typing import Any

import numpy as np

from moe_vision.config.schema import Config
from moe_vision.surgery.kind import Kind
from moe_vision.surgery.state import Arrays, State


def carried(
    kind: Kind,
    source: State,
    moments: Arrays,
    source_config: Config,
    fresh: State,
    fresh_moments: Arrays,
    config: Config,
) -> dict[str, np.ndarray]:
    """The optimizer's state of the result, by path. Counts of steps are those of the source.

    Args:
      source, moments: weights of the source, and its optimizer's state by path.
      fresh, fresh_moments: the same of the result, before its first step.

    Raises:
      Misfit: the optimizers are not alike.
    """
    kind, made = kind.for_moments(), dict[str, np.ndarray]()
    theirs, ours = _by_kind(moments, source.params), _by_kind(fresh_moments, fresh.params)
    for prefix, own in ours.items():
        there = dataclasses.replace(
            source, params=theirs.get(prefix, {}), batch_stats={}, router_state={}
        )
        here = dataclasses.replace(fresh, params=own, batch_stats={}, router_state={})
        cut = kind(there, source_config, here, config).params
        made |= {f'{prefix}{path}': x for path, x in cut.items()}
    for path, other in fresh_moments.items():
        if path not in made:
            there_too = path in moments and moments[path].shape == other.shape
            made[path] = moments[path] if there_too else other
    return made


def _by_kind(moments: Arrays, params: Arrays) -> dict[str, dict[str, Any]]:
    """What an optimizer keeps for each parameter: {'1/mu/': {path: array}, ...}."""
    found: dict[str, dict[str, Any]] = {}
    for path, x in moments.items():
        parts = path.split('/')
        for i in range(len(parts)):
            if (name := '/'.join(parts[i:])) in params:
                prefix = path.removesuffix(name)
                found.setdefault(prefix, {})[name] = x
                break
    return found
