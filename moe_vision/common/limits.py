"""The limits at which a run is warned about, for all that judge one: training, result, report.

A layer has collapsed if fewer than half of its E experts carry its load, counted as 1 / sum q^2 of
the load q, or if an expert is dead, which is a load below 1 % of an even one. A run has collapsed
if any of its layers has, in its last evaluation.
"""

import math
from collections.abc import Sequence

DEAD = 0.01  # share of an even load, 1/E, below which an expert is dead
DROPS = 0.2  # share of choices above which a layer drops too many; default of log.warn_drop_rate
RIGHT = 0.05  # share of its images below which a class is nearly never recognised


def why_collapsed(effective: float, dead: float, num_experts: int) -> list[str]:
    """The criteria by which a layer of E experts has collapsed, in words; [] if it has not.

    Args:
      effective: 1 / sum q^2 of its load q.
      dead: how many experts have a load below `DEAD` / E.
    """
    of = f'of its {num_experts} experts' if num_experts else 'of its experts'
    why = []
    if effective < num_experts / 2:
        shown = math.floor(100 * effective) / 100  # never rounded up to the limit
        why.append(f'fewer than half {of} carry the load (the equivalent of {shown:g})')
    if dead > 0:
        are = 'is' if dead == 1 else 'are'
        why.append(f'{dead:.0f} {of} {are} dead (below {100 * DEAD:g} % of an even load)')
    return why


def unrecognised(right: Sequence[float], images: Sequence[float]) -> list[int]:
    """The classes that are (nearly) never recognised: right on fewer than `RIGHT` of their images.

    Args:
      right: by class, how many images were predicted right.
      images: by class, how many there are; a class without images is left out.
    """
    return [
        c for c, (r, n) in enumerate(zip(right, images, strict=True)) if n > 0 and r < RIGHT * n
    ]
