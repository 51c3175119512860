"""Warns when routing goes wrong, and names the config key to look at."""

from collections.abc import Iterator
from typing import Any

from absl import logging

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
        log, moe = self._config.log, self._config.model.moe
        e = moe.num_experts
        if x['dead_experts']:
            yield (
                'dead',
                (
                    f'{x["dead_experts"]} of {e} experts get almost no tokens; look at '
                    'model.moe.losses and model.moe.router_args.'
                ),
            )
        if x['effective_experts'] < e / 2:
            yield (
                'collapse',
                (
                    f'the load has collapsed to {x["effective_experts"]:.1f} effective '
                    f'experts of {e}; look at model.moe.losses.'
                ),
            )
        elif x['max_over_mean'] > log.warn_max_over_mean:
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
