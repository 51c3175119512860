"""Chooses the sizes of a study from a data set and a budget, and says what it could detect.

These choices rest on pilots on Fashion-MNIST that are not part of this repository: experts can
only supply capacity that the dense network lacks, so the network is small; drops hurt in small
groups, so groups are large; and experts learn slowly, so a run has thousands of steps.
"""

import dataclasses
import math
from typing import Any

from input_pipeline import DatasetInfo
from moe_vision.common.errors import UserError
from moe_vision.study.analysis import statistics

BACKBONES = ('conv', 'depthwise', 'vit')
RATES = {'conv': (3e-3, 1e-2, 3e-2), 'depthwise': (3e-3, 1e-2, 3e-2), 'vit': (1e-3, 3e-3, 1e-2)}
EXPERTS = 8
COMPARISONS = 3  # primary ones
GATE_SEEDS, TUNING_SEEDS = 6, 2
GATE_ARMS, TUNED_ARMS, ANSWER_ARMS = 2, 4, 8
SEEDS = (6, 12)  # fewest and most: 5 seeds of one sign have p = 0.0625, whatever the gap
STEPS = (1_000, 5_000, 20_000)  # shortest run, length before seeds are added, longest run
EPOCHS = 72  # most passes over the images: more of them, and a small set is learned by heart
SHARE = 0.8  # of the budget that is planned; the rest is for compiling and scoring
ALPHA = 0.05
ACCURACY = 0.9  # assumed, to say how much a number of images can resolve
_LARGE = 50_000  # training images from which on images and networks are larger


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the data set decides.

    Attributes:
      image_size: side in pixels.
      batch_size: images of a step.
      group_size: tokens that share capacity: images, or patches of a vit.
      network: arguments of the backbone.
    """

    image_size: int
    batch_size: int
    group_size: int
    network: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the hours buy.

    Attributes:
      seeds: of the reported runs.
      steps: optimizer steps of every run.
      cell_seconds: of one run of k2 on one core.
      same_params: how many times a run of k2 one of the gate's widened twin costs.
    """

    seeds: int
    steps: int
    cell_seconds: float
    same_params: float

    @property
    def stages(self) -> dict[str, tuple[int, float]]:
        """Stage -> its cells, and the core-seconds that they take."""
        tuning = TUNED_ARMS * len(RATES['conv']) * TUNING_SEEDS
        answer = ANSWER_ARMS * self.seeds
        return {
            'gate': (GATE_ARMS * GATE_SEEDS, _gate(self.same_params) * self.cell_seconds),
            'tuning': (tuning, tuning * self.cell_seconds),
            'answer': (answer, answer * self.cell_seconds),
        }


def validation_fraction(images: int) -> float:
    """The share of `images` stored training images to hold out: small sets need more of them."""
    return 0.05 if images >= 40_000 else 0.1 if images >= 10_000 else 0.2


def sizes(backbone: str, info: DatasetInfo, own_size: int | None, image_size: int = 0) -> Sizes:
    """Image size, batch, group and network for a data set.

    Args:
      own_size: the longer side of the stored images; None if they vary.
      image_size: the user's choice; 0 chooses.

    Raises:
      UserError: the set cannot answer: too few images, one class, or nothing to test on.
    """
    images = info.split_sizes['train']
    if 'test' not in info.split_sizes or 'validation' not in info.split_sizes:
        lacks = 'test' if 'test' not in info.split_sizes else 'validation'
        raise UserError(
            f"'{info.name}' has no {lacks} images, and what is tuned on validation cannot be "
            f'judged on it; move some of each class (a fifth is usual) to {lacks}/ and prepare the '
            'set again.'
        )
    if info.num_classes < 2:
        raise UserError(f"'{info.name}' has one class, so there is nothing to tell apart.")
    if images < 128:
        raise UserError(
            f"'{info.name}' has {images} training images; a study needs 128 or more, and says "
            'little with fewer than some thousands.'
        )
    large = images > _LARGE
    side = image_size or min(own_size or 10_000, 64 if large else 32)
    batch = min(max(2 ** round(math.log2(images / 32)), 64), 256)
    if backbone != 'vit':
        stages = 2 if side <= 16 else 3 if side <= 32 else 4
        first = 8 if images > 2 * _LARGE else 4
        widths = tuple(first * 2**i for i in range(stages))
        return Sizes(side, batch, batch, {'widths': widths, 'depth': 1})
    if not image_size:
        side = max(side // 4 * 4, 4)
    patch = max(p for p in range(1, max(side // 4, 1) + 1) if side % p == 0)
    tokens = (side // patch) ** 2
    together = 2 ** int(math.log2(max(256 / tokens, 1)))  # images whose patches share capacity
    network: dict[str, Any] = {'width': 24, 'depth': 2, 'heads': 3, 'patch_size': patch}
    return Sizes(side, batch, min(together, batch) * tokens, network)


def budget(
    core_hours: float,
    cores: int,
    images_per_second: float,
    batch_size: int,
    images: int,
    same_params: float,
) -> Budget:
    """Seeds and length of the runs.

    First as many seeds as the strictest comparison needs to be sure (the least p of the sign-flip
    test), then length, then more seeds, then more length.

    Args:
      core_hours: of all cores together.
      cores: how many they are, for the message.
      images_per_second: of one run of k2 on one core, while it trains.
      images: to train on; they limit the length, but not below the shortest run.
      same_params: as in `Budget`; every other arm counts as k2, which none exceeds by much.

    Raises:
      UserError: the budget is too small for the fewest seeds and the shortest run.
    """

    def step_seconds(seeds: int) -> float:  # of all cells together, for one step of each
        tuning = TUNED_ARMS * len(RATES['conv']) * TUNING_SEEDS
        cells = _gate(same_params) + tuning + ANSWER_ARMS * seeds
        return cells * batch_size / images_per_second

    seconds = SHARE * core_hours * 3600
    longest = max(min(STEPS[2], EPOCHS * images // batch_size // 50 * 50), STEPS[0])
    usual = min(STEPS[1], longest)
    if seconds < STEPS[0] * step_seconds(SEEDS[0]):
        need = STEPS[0] * step_seconds(SEEDS[0]) / SHARE / 3600 / cores
        raise UserError(
            f'--hours={core_hours / cores:g} is too little: {SEEDS[0]} seeds of {STEPS[0]:,} steps '
            f'need {math.ceil(10 * need) / 10:,.1f} hours on {cores} '
            f'core{"s" * (cores > 1)} at {images_per_second:,.0f} images/s on each; give that, or '
            'smaller images with --image_size.'
        )
    seeds = max(
        n
        for n in range(SEEDS[0], SEEDS[1] + 1)
        if seconds >= (usual if n > SEEDS[0] and sure(n - 1) else STEPS[0]) * step_seconds(n)
    )
    steps = min(int(seconds / step_seconds(seeds)) // 50 * 50, longest)
    return Budget(seeds, steps, steps * batch_size / images_per_second, same_params)


def sure(seeds: int) -> bool:
    """Whether the strictest primary comparison can be sure: by the sign-flip test's smallest p."""
    return statistics.attainable(seeds) <= ALPHA / COMPARISONS


def _gate(same_params: float) -> float:
    """What the gate costs, in cells of k2."""
    return GATE_SEEDS * (1 + max(same_params, 1.0))


def detectable(seeds: int, sd: float) -> float:
    """The smallest gap (pp) that the strictest primary comparison finds with 80 % power.

    Args:
      sd: of the paired gaps over seeds, pp.
    """
    return statistics.detectable(seeds, ALPHA / COMPARISONS) * sd


def image_error(images: int) -> float:
    """Binomial standard error (pp) of an accuracy of 90 % on this many images."""
    return 100 * math.sqrt(ACCURACY * (1 - ACCURACY) / images)
