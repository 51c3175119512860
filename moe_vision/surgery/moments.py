"""Carries the state of an optimizer along: its moments are cut as the weights are."""

import dataclasses
import os
from typing import Any

import numpy as np

from moe_vision.config.schema import Config
from moe_vision.surgery.kind import Kind
from moe_vision.surgery.state import Arrays, State

_INNER = 'optimizer/'  # begins the paths of an optimizer beside transforms


def carried(
    kind: Kind,
    source: State,
    moments: Arrays,
    source_config: Config,
    fresh: State,
    fresh_moments: Arrays,
    config: Config,
) -> dict[str, np.ndarray]:
    """The optimizer's state of the result, by path.

    A count of steps that moments are corrected by is that of the source, too. What says how far the
    run is begins anew: the schedule of the learning rate, and what transforms keep.

    Args:
      source, moments: weights of the source, and its optimizer's state by path.
      fresh, fresh_moments: the same of the result, before its first step.

    Raises:
      Misfit: the optimizers are not alike.
    """
    kind, made = kind.for_moments(), dict[str, np.ndarray]()
    bare, moments = _bare(fresh_moments), _bare(moments)
    theirs, ours = _by_kind(moments, source.params), _by_kind(bare, fresh.params)
    for prefix, own in ours.items():
        there = dataclasses.replace(
            source, params=theirs.get(prefix, {}), batch_stats={}, router_state={}
        )
        here = dataclasses.replace(fresh, params=own, batch_stats={}, router_state={})
        cut = kind(there, source_config, here, config).params
        made |= {f'{prefix}{path}': x for path, x in cut.items()}
    beside = {os.path.dirname(prefix.rstrip('/')) for prefix in ours}  # such as 1/0 of 1/0/mu/
    for path, other in bare.items():
        if path not in made:
            there_too = path in moments and moments[path].shape == other.shape
            counts = os.path.dirname(path) in beside
            made[path] = moments[path] if there_too and counts else other
    return {path: made.get(path.removeprefix(_INNER), x) for path, x in fresh_moments.items()}


def _bare(moments: Arrays) -> Arrays:
    """The same without what transforms keep, by the paths that it has where there are none."""
    return {
        path.removeprefix(_INNER): x
        for path, x in moments.items()
        if not path.startswith('transforms/')
    }


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
