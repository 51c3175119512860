"""Says in words when routing goes wrong, and which config key to look at."""

from typing import Any

from absl import logging

from moe_vision.config.schema import Config


class Health:
    """Warns once when something sets in, and again only after it has passed."""

    def __init__(self, config: Config):
        self._config = config
        self._known: set[tuple[str, str]] = set()

    def check(self, row: dict[str, Any]) -> list[str]:
        """Logs and returns the warnings that a metrics row gives."""
        now: dict[tuple[str, str], str] = {}
        for layer, x in row['layers'].items():
            for kind, text in self._layer(x):
                now[layer, kind] = f'step {row["step"]}, {layer}: {text}'
        new = [text for what, text in now.items() if what not in self._known]
        self._known = set(now)
        for text in new:
            logging.warning('%s', text)
        return new

    def _layer(self, x: dict[str, Any]):
        log, moe = self._config.log, self._config.model.moe
        e = moe.num_experts
        if x['dead_experts']:
            yield 'dead', (f'{x["dead_experts"]} of {e} experts get next to nothing; look at '
                           'model.moe.losses and model.moe.router_args.')
        if x['effective_experts'] < e / 2:
            yield 'collapse', (f'the load has collapsed to {x["effective_experts"]:.1f} effective '
                               f'experts of {e}; look at model.moe.losses.')
        elif x['max_over_mean'] > log.warn_max_over_mean:
            yield 'load', (f'one expert has {x["max_over_mean"]:.1f} times the mean load; look at '
                           'model.moe.losses.')
        if x['drop_rate'] > log.warn_drop_rate:
            yield 'drops', (f'{x["drop_rate"]:.0%} of the choices are dropped; look at '
                            'model.moe.capacity_factor and model.moe.losses.')
