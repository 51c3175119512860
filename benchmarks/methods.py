"""Training steps with the methods of docs/methods.md, beside top-k routing with the same E and k.

Each line of that page is laid over `configs/digits_k2.py`. Its baseline keeps the backbone, the
placement, the experts' number and width, k, the capacity and the groups, and takes the default
router and losses. Batches are random and on the device.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.step import batch, stepping
from benchmarks.table import Row, row
from benchmarks.timing import Compiled, compiled
from moe_vision.common.paths import ROOT
from moe_vision.config import check as config_lib
from moe_vision.config import source
from moe_vision.config.schema import Config
from moe_vision.training.setup import Setup

MOE = '--config.model.moe.'
KEPT = (  # those of a line that its baseline takes over
    '--config.dataset.domains',
    '--config.model.name',
    '--config.model.args',
    f'{MOE}placement',
    f'{MOE}num_experts',
    f'{MOE}k',
    f'{MOE}hidden',
    f'{MOE}capacity_factor',
    f'{MOE}eval_capacity_factor',
    f'{MOE}group_size',
)


def table() -> tuple[list[str], list[list[str]]]:
    """The table of docs/methods.md: its head and its rows, as cells."""
    lines = (ROOT / 'docs' / 'methods.md').read_text().splitlines()
    head, _, *found = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in lines
        if line.startswith('|')
    ]
    return head, found


def lines() -> list[tuple[str, str]]:
    """(method, config line) for all config lines of docs/methods.md; a method may have several."""
    head, found = table()
    return [
        (cells[0], line)
        for cells in found
        for line in re.findall('`([^`]*)`', cells[head.index('config')])
        if line.startswith('--config.')
    ]


def config_of(args: list[str]) -> Config:
    """`configs/digits_k2.py` with these overrides, such as '--config.model.moe.k=1'."""
    common, opened, _ = source.take_overrides(args)
    return config_lib.check(source.load(str(ROOT / 'configs' / 'digits_k2.py'), common, opened))


def baseline(args: list[str]) -> list[str]:
    """Those of a line's overrides that its baseline takes over.

    A router that may choose no expert can make more choices than there are experts; its baseline
    chooses them all.
    """
    kept = dict(a.split('=', 1) for a in args if a.partition('=')[0] in KEPT)
    experts, k = f'{MOE}num_experts', f'{MOE}k'
    if experts in kept and int(kept.get(k, 0)) > int(kept[experts]):
        kept[k] = kept[experts]
    return [f'{key}={value}' for key, value in kept.items()]


class Stepper:
    """Compiled steps of a config, each from the state that the last one left."""

    def __init__(self, args: list[str]):
        setup = Setup(config_of(args))
        arrays = batch(setup)
        self.flops = setup.cost.flops_executed
        self.step: Compiled = compiled(setup.step, setup.fresh_state(), arrays)
        self.call: Callable[[], Any] = stepping(setup, self.step, arrays)


def beside_top_k(name: str, line: list[str], baselines: dict[str, Stepper], rounds: int) -> Row:
    """Times a line's step beside that of its baseline.

    Args:
      line: overrides of the config.
      baselines: those compiled so far, by their overrides; a new one is added.
    """
    kept = baseline(line)
    known = shlex.join(kept)
    if known not in baselines:
        baselines[known] = Stepper(kept)
    ours, other = Stepper(line), baselines[known]
    return row(
        name,
        {name: ours.call, 'top-k': other.call},
        rounds,
        facts={'times the FLOPs': ours.flops / other.flops, 'compiling s': ours.step.seconds},
    )


def rows(rounds: int) -> Iterator[Row]:
    seen: dict[str, int] = {}
    baselines: dict[str, Stepper] = {}
    for method, line in lines():
        seen[method] = seen.get(method, 0) + 1
        name = method if seen[method] == 1 else f'{method} ({seen[method]})'
        yield beside_top_k(name, shlex.split(line), baselines, rounds)
