"""Warns when routing goes wrong, and names the config key to look at."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from moe_vision.common import limits
from moe_vision.config.schema import Config


class Health:
    """Warns once when a problem begins, and again only if it has passed and comes back.

    It waits for the end of the warm-up: experts take their shares while the learning rate rises.

    Args:
      warmup: steps of the warm-up.
    """

    def __init__(self, config: Config, warmup: int):
        self._config, self._warmup = config, warmup
        self._known: set[tuple[str, str]] = set()

    def check(self, row: dict[str, Any]) -> list[str]:
        """Logs and returns the warnings that are new in a metrics row."""
        if row['step'] <= self._warmup:
            return []
        problems = {
            (layer, kind): f'step {row["step"]}, {layer}: {message}'
            for layer, x in row['layers'].items()
            for kind, message in self._problems(x)
        }
        new = [message for problem, message in problems.items() if problem not in self._known]
        self._known = set(problems)
        for message in new:
            logging.warning('%s', message)
        return new

    def _problems(self, x: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """(kind, message) of each problem in the telemetry of a layer."""
        log = self._config.log
        why = limits.why_collapsed(x['effective_experts'], x['dead_experts'], len(x['load']))
        for kind, words in why.items():
            yield kind, f'{words}; look at model.moe.losses and model.moe.router_args.'
        if 'effective' not in why and x['max_over_mean'] > log.warn_max_over_mean:
            yield (
                'load',
                (
                    f'one expert has {x["max_over_mean"]:.1f} times the mean load; look at '
                    'model.moe.losses.'
                ),
            )
        if x['drop_rate'] > log.warn_drop_rate:
            yield (
                'drops',
                (
                    f'{x["drop_rate"]:.0%} of the choices are dropped; look at '
                    'model.moe.capacity_factor and model.moe.losses.'
                ),
            )


def check_classes(scores: dict[str, Any], names: Sequence[str], split: str) -> list[str]:
    """Logs and returns warnings about classes that are never recognised on a scored split.

    Args:
      scores: of `Evaluator.score` with details.
    """
    confusion = np.asarray(scores['confusion'])
    right, images = np.diag(confusion).tolist(), confusion.sum(1).tolist()
    warnings = limits.about_classes(right, images, names, split)
    for message in warnings:
        logging.warning('%s', message)
    return warnings
