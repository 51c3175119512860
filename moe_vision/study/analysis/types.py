"""What an analysis says, as plain values: made by `analysis`, drawn by `report`.

All accuracies and gaps are percentage points (pp); NaN is "not defined".
"""

import dataclasses
from typing import Any

from moe_vision.study.types import Verdict


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A paired difference over seeds: n values, mean, sd, t-interval at `level`."""

    values: tuple[float, ...]
    n: int
    mean: float
    sd: float
    low: float
    high: float
    level: float  # such as 0.95


@dataclasses.dataclass(frozen=True)
class Gap:
    """One comparison."""

    name: str
    arm: str
    baseline: str
    primary: bool
    expected: str
    seeds: tuple[int, ...]  # those both arms have, in order
    arm_values: tuple[float, ...]  # accuracy, pp; a diverged run scores chance
    baseline_values: tuple[float, ...]
    estimate: Estimate  # the interval at the adjusted level that the verdict rests on
    effect_size: float  # d_z = mean / sd
    p: float  # paired t-test, two-sided
    p_holm: float  # over the primary comparisons; NaN for exploratory ones
    p_sign_flip: float  # exact, two-sided, unadjusted
    p_tost: float  # the larger one-sided p of the two, unadjusted
    p_tost_holm: float
    verdict: Verdict
    note: str  # 'negligible: ...', 'sd = 0: ...', '' and so on
    mde: float  # smallest gap found with 80 % power at the adjusted level and this sd, pp
    correlation: float  # of the two arms over seeds
    image_error: float  # standard error that the finite test set adds to the mean gap, pp
    selected: Estimate  # the same gap at the checkpoint chosen on validation
    without_diverged: Estimate  # the same gap over pairs in which both runs ended
    diverged: int  # runs of either arm that did
    cost: float  # FLOPs per image, arm / baseline, k active experts
    cost_executed: float  # the same as executed
    params: float  # parameters, arm / baseline
    rho_place: float  # of the arm
    flags: tuple[str, ...]  # exploratory for a reason, other device, other version


@dataclasses.dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds."""

    name: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]  # final test accuracy, pp
    mean: float
    sd: float
    validation: tuple[float, ...]  # accuracy on the validation split at the end of training, pp
    selected: tuple[float, ...]  # test accuracy at the checkpoint chosen on validation, pp
    unbounded: tuple[float, ...]  # test accuracy without capacity limit, pp
    diverged: tuple[int, ...]  # seeds
    flops: float
    flops_executed: float
    params_total: int
    params_active: int
    rho_place: float
    rho_active: float
    rho_executed: float
    routed: bool
    collapsed: int  # how many seeds
    effective_experts: tuple[float, ...]  # per seed, the worst layer
    dead_experts: tuple[float, ...]  # NaN, like the others, where the run diverged
    drop_rate: tuple[float, ...]
    orphan_rate: tuple[float, ...]
    mechanism: dict[str, Any]  # means over seeds; {} where not probed
    config: dict[str, Any]  # resolved, of the first seed


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Comparisons that must all come out as expected; p is the largest of theirs."""

    name: str
    comparisons: tuple[str, ...]
    verdicts: tuple[str, ...]
    p: float
    supported: bool


@dataclasses.dataclass(frozen=True)
class Analysis:
    study: dict[str, Any]  # the pre-registration record
    hash: str  # of it
    arms: dict[str, ArmSummary]
    gaps: dict[str, Gap]
    patterns: tuple[Pattern, ...]
    problems: tuple[str, ...]  # one line each: missing, half-written, of another commit, ...
    rows: dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> row, as read
