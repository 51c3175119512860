"""Makes up a study for the report's tests: rows, analysis and timings with realistic values."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from moe_vision.study.analysis.analyse import Analysis, Gap, Pattern
from moe_vision.study.analysis.statistics import Estimate
from moe_vision.study.analysis.summaries import ArmSummary

NAN = math.nan
WIDTHS = (8, 32, 128, 512, 2048)
RHO = {'standard': (0.008, 0.03, 0.11, 0.31, 0.62), 'depthwise': (0.009, 0.05, 0.17, 0.42, 0.71)}
IMAGES = 360


def estimate(values: Sequence[float], level: float) -> Estimate:
    """The mean with its t-interval, computed with numpy and scipy."""
    d, n = np.array(values, float), len(values)
    sd = float(d.std(ddof=1)) if n > 1 else NAN
    half = stats.t.ppf((1 + level) / 2, n - 1) * sd / math.sqrt(n) if n > 1 else NAN
    mean = float(d.mean()) if n else NAN
    return Estimate(tuple(map(float, d)), n, mean, sd, mean - half, mean + half, level)


class Maker:
    """Makes arms, rows and comparisons, which a test may change before it calls `analysis`."""

    def __init__(self, seeds: int = 8, margin: float = 0.5):
        self.seeds, self.margin = tuple(range(seeds)), margin
        self.rng = np.random.default_rng(3)
        self.level_of_seed = self.rng.normal(0, 0.25, seeds)
        self.arms: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, dict[int, dict[str, Any]]] = {}
        self.comparisons: dict[str, tuple[str, str, str, bool]] = {}
        self.figures: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.question = 'Does sparse routing pay on digits, and at what leverage?'

    def arm(
        self,
        name: str,
        mean: float,
        rho: float,
        *,
        sd: float = 0.35,
        routed: bool = True,
        temperature: Any = lambda t: 1.0,
        **moe: Any,
    ) -> str:
        moe = {'num_experts': 8, 'k': 2, 'router': 'top_k', 'router_args': {}} | moe
        flops = 1e7 * (1 + rho * (moe['k'] - 1)) if routed else 1e7
        self.arms[name] = {'rho': rho, 'flops': flops, 'routed': routed, 'moe': moe, 'mean': mean}
        self.rows[name] = {
            s: self._row(
                name, s, mean + self.level_of_seed[i] + self.rng.normal(0, sd), temperature
            )
            for i, s in enumerate(self.seeds)
        }
        return name

    def compare(
        self, arm: str, baseline: str, expected: str = 'none', primary: bool = False, name: str = ''
    ) -> str:
        name = name or f'{arm}_vs_{baseline}'
        self.comparisons[name] = (arm, baseline, expected, primary)
        return name

    def figure(self, kind: str, title: str, **series: Sequence[str]) -> None:
        self.figures.append(
            {'kind': kind, 'title': title, 'series': {k: list(v) for k, v in series.items()}}
        )

    def _row(self, arm: str, seed: int, accuracy: float, temperature: Any) -> dict[str, Any]:
        known = self.arms[arm]
        rng, routed = self.rng, known['routed']
        right = round(accuracy / 100 * IMAGES) / IMAGES
        effective = float(rng.uniform(5.5, 7.8)) if routed else None
        layers = ('blocks_1', 'blocks_2') if routed else ()
        curve = []
        for i in range(1, 21):
            t = i / 20
            entropy = math.log(8) * (1 - 0.6 * t) * min(temperature(t), 1.2)
            curve.append(
                {
                    'step': 10 * i,
                    'epoch': float(i),
                    'loss': 2 * math.exp(-4 * t),
                    'accuracy': right * (1 - 0.85 * math.exp(-6 * t)) + 0.004 * rng.normal(),
                    'layers': {
                        layer: {
                            'effective_experts': 7.0,
                            'dead_experts': 0,
                            'drop_rate': 0.02,
                            'orphan_rate': 0.0,
                            'gate_entropy': entropy + 0.03 * j,
                            'temperature': temperature(t),
                            'max_over_mean': 1.4,
                        }
                        for j, layer in enumerate(layers)
                    },
                }
            )
        return {
            'study': 'digits',
            'arm': arm,
            'seed': seed,
            'run_seed': seed,
            'status': 'done',
            'error': '',
            'preregistration': 'ab' * 32,
            'config': {},
            'images': IMAGES,
            'versions': {'jax': '0.10.2', 'python': '3.11.2'},
            'git_commit': '0123456789abcdef',
            'device': 'cpu',
            'num_classes': 10,
            'correct': '',
            'result': {
                'test_accuracy': right,
                'test_accuracy_selected': right - 0.002,
                'test_accuracy_unbounded': right + 0.001,
                'flops': known['flops'],
                'flops_executed': 1.1 * known['flops'],
                'params_total': 723_050,
                'params_active': 279_146,
                'rho_place': known['rho'],
                'rho_active': 0.38 * routed,
                'rho_executed': 0.43 * routed,
                'drop_rate': 0.02,
                'orphan_rate': 0.001,
                'dead_experts': 0,
                'collapsed': False,
                'effective_experts': effective,
            },
            'layers': {layer: {'mutual_information': 0.8} for layer in layers},
            'curve': curve,
            'mechanism': self._mechanism(layers),
        }

    def _mechanism(self, layers: Sequence[str]) -> dict[str, Any]:
        if not layers:
            return {}
        u = self.rng.uniform
        epochs = [float(e) for e in range(1, 21)]
        return {
            'shuffle_drop': u(0.01, 0.05),
            'random_drop': u(0.02, 0.06),
            'ablation': {layer: [u(0, 0.02) for _ in range(8)] for layer in layers},
            'specialisation': {
                layer: {'mutual_information': u(0.5, 0.9), 'normalised': u(0.2, 0.45)}
                for layer in layers
            },
            'agreement': {
                layer: {
                    'epoch': epochs,
                    'with_previous': [
                        None,
                        *(1 - math.exp(-e / 4) * u(0.5, 0.6) for e in epochs[1:]),
                    ],
                    'with_final': [1 - 0.8 * math.exp(-e / 5) * (e < 20) for e in epochs],
                }
                for layer in layers
            },
            'router_gradient': {
                layer: {'task': u(0.01, 0.03), 'balance': u(0.02, 0.05)} for layer in layers
            },
        }

    def diverge(self, arm: str, seed: int) -> None:
        self.rows[arm][seed] |= {
            'status': 'diverged',
            'error': 'loss is nan at step 40',
            'result': {'flops': 1e7},
            'curve': [],
            'mechanism': None,
        }

    def values(self, arm: str) -> dict[int, float]:
        return {
            s: 10.0 if row['status'] == 'diverged' else 100 * row['result']['test_accuracy']
            for s, row in self.rows[arm].items()
        }

    def gap(self, name: str) -> Gap:
        arm, baseline, expected, primary = self.comparisons[name]
        a, b = self.values(arm), self.values(baseline)
        seeds = tuple(s for s in a if s in b)
        d = [a[s] - b[s] for s in seeds]
        lost = {
            s
            for side in (arm, baseline)
            for s in seeds
            if self.rows[side][s]['status'] == 'diverged'
        }
        level = 1 - 0.05 / max(sum(c[3] for c in self.comparisons.values()), 1) if primary else 0.95
        e = estimate(d, level)
        tost = estimate(d, 0.9)
        sign = 'positive' if e.low > 0 else 'negative' if e.high < 0 else ''
        verdict: Any = sign or 'inconclusive'
        if e.n > 1 and -self.margin < tost.low and tost.high < self.margin:
            verdict = f'{sign}, within the margin' if sign else 'equivalent'
        p = float(stats.ttest_1samp(d, 0).pvalue) if e.n > 1 and e.sd else NAN
        ours, theirs = self.arms[arm], self.arms[baseline]
        ended = [x for s, x in zip(seeds, d, strict=True) if s not in lost]
        return Gap(
            name=name,
            arm=arm,
            baseline=baseline,
            primary=primary,
            expected=expected,
            seeds=seeds,
            arm_values=tuple(a[s] for s in seeds),
            baseline_values=tuple(b[s] for s in seeds),
            estimate=e,
            outer=estimate(d, self.levels()[0]),
            inner=estimate(d, self.levels()[1]),
            effect_size=e.mean / e.sd if e.n > 1 and e.sd else NAN,
            level=level,
            p=p,
            p_holm=min(1.0, 4 * p) if primary else NAN,
            q=NAN if primary else min(1.0, 3 * p),
            p_sign_flip=p,
            p_tost=p,
            p_tost_holm=p if primary else NAN,
            verdict=verdict,
            doubt='',
            note='',
            mde=1.5 * e.sd,
            correlation=0.31,
            image_error=0.24,
            selected=estimate([x - 0.1 for x in d], level),
            without_diverged=estimate(ended, level),
            diverged=len(lost),
            cost=ours['flops'] / theirs['flops'],
            cost_executed=1.1 * ours['flops'] / theirs['flops'],
            params=3.5,
            rho_place=ours['rho'],
            flags=() if primary or seeds == self.seeds else ('unpaired seeds: 7',),
        )

    def summary(self, name: str) -> ArmSummary:
        known, values = self.arms[name], self.values(name)
        v = tuple(values.values())
        e = estimate(v, 0.95)
        n, routed = len(v), known['routed']
        results = [row['result'] for row in self.rows[name].values()]
        return ArmSummary(
            name,
            tuple(values),
            v,
            e.mean,
            e.sd,
            tuple(x + 0.3 for x in v),
            tuple(x - 0.2 for x in v),
            tuple(x + 0.1 for x in v),
            tuple(s for s, row in self.rows[name].items() if row['status'] == 'diverged'),
            known['flops'],
            1.1 * known['flops'],
            723_050,
            279_146,
            known['rho'],
            0.38 * routed,
            0.43 * routed,
            routed,
            1 if name == 'k1' else 0,
            tuple(r.get('effective_experts') or NAN for r in results),
            (0,) * n,
            (0.02,) * n,
            (0.001,) * n,
            {},
            {'model': {'moe': known['moe']}},
            estimate(v, self.levels()[0]),
            estimate(v, self.levels()[1]),
        )

    def levels(self) -> tuple[float, float]:
        """Of the outer and the inner interval of every picture."""
        return 1 - 0.05 / max(sum(c[3] for c in self.comparisons.values()), 1), 0.9

    def study(self) -> dict[str, Any]:
        return {
            'name': 'digits',
            'question': self.question,
            'hypotheses': [
                'At small ρ routing costs accuracy; at large ρ it gains accuracy.',
                'k = 1 falls below its twin and k = 2 lies above.',
            ],
            'arms': {name: {'config': {}, 'seed_offset': 0} for name in self.arms},
            'seeds': list(self.seeds),
            'margin': self.margin,
            'alpha': 0.05,
            'correction': 'holm',
            'metric': 'test_accuracy',
            'seed_mode': 'one_by_one',
            'mechanism': True,
            'comparisons': {
                n: dict(zip(('arm', 'baseline', 'expected', 'primary'), c, strict=True))
                for n, c in self.comparisons.items()
            },
            'patterns': {'reversal': [n for n, c in self.comparisons.items() if c[3]]},
            'tuning': 'Learning rate on validation, seeds 100 to 102, the same grid for the twin.',
            'exclusion': 'None. A run whose loss is not finite scores chance.',
            'stopping': 'No seed is added after a result was seen.',
            'figures': self.figures,
        }

    def analysis(self) -> Analysis:
        gaps = {name: self.gap(name) for name in self.comparisons}
        members = tuple(n for n, g in gaps.items() if g.primary)
        verdicts = tuple(gaps[n].verdict for n in members)
        pattern = Pattern('reversal', members, verdicts, 0.021, False)
        return Analysis(
            self.study(),
            'ab' * 32,
            {n: self.summary(n) for n in self.arms},
            gaps,
            (pattern,) if members else (),
            tuple(self.problems),
            self.rows,
        )

    def timings(self) -> dict[str, Any]:
        cells = {
            arm: {
                str(s): {
                    'seconds': 61.0 + s,
                    'trained_flops': 10,
                    'images_per_second': 4000.0 + s,
                    'device': 'cpu',
                    'host_cores': 2,
                }
                for s in rows
            }
            for arm, rows in self.rows.items()
        }
        arms = {}
        for i, (name, known) in enumerate(list(self.arms.items())[:6]):
            arms[name] = {
                'flops': known['flops'],
                'batches': {
                    str(b): {
                        'median_ms': t,
                        'low_ms': 0.95 * t,
                        'high_ms': 1.08 * t,
                        'images_per_second': 1000 * b / t,
                    }
                    for b in (1, 8, 64, 512)
                    for t in [(0.4 + 0.012 * b) * (1 + 0.3 * i)]
                },
            }
        return {'cells': cells, 'latency': {'device': 'cpu', 'arms': arms}}


def full(seeds: int = 8) -> Maker:
    """Two families of five widths; k, soft and temperature arms; one row diverged, one missing."""
    m = Maker(seeds)
    m.arm('dense', 98.9, 0.0, routed=False)
    families: dict[str, list[str]] = {}
    for family, rhos in RHO.items():
        twins = m.arm(f'dense_{family}', 98.6, 0.0, routed=False)
        for i, (width, rho) in enumerate(zip(WIDTHS, rhos, strict=True)):
            arm = m.arm(f'{family}_h{width}', 98.0 + 0.35 * i, rho)
            families.setdefault(family, []).append(
                m.compare(
                    arm, twins, ('negative', 'none', 'none', 'none', 'positive')[i], i in (0, 4)
                )
            )
    m.figure('gap_against_rho', 'Gap against leverage, both backbone families', **families)
    ks = [
        m.compare(m.arm(f'k{k}', mean, 0.38, k=k), 'dense')
        for k, mean in ((1, 98.1), (2, 98.8), (4, 99.3))
    ]
    fixed = [
        m.compare(m.arm(f'k{k}_fixed_capacity', mean, 0.38, k=k), 'dense')
        for k, mean in ((1, 98.2), (2, 98.9), (4, 99.1))
    ]
    m.figure('k_ablation', 'Ablation over k', **{'capacity follows k': ks, 'fixed C': fixed})
    soft = {}
    for axis, drop in (('batch', 1.5), ('none', 0.1)):
        soft[f'axis {axis}'] = [
            m.compare(
                m.arm(
                    f'soft_{axis}_s{s}',
                    98.8 - drop / s,
                    0.38,
                    k=1,
                    num_experts=4,
                    router='soft',
                    router_args={'axis': axis, 'slots_per_expert': s},
                ),
                'dense',
            )
            for s in (1, 2, 4, 8)
        ]
    m.figure('soft_axis', 'Soft MoE: slots that mix images', **soft)
    schedules = {
        'constant': lambda t: 1.0,
        'cosine 2 to 0.5': lambda t: 1.25 + 0.75 * math.cos(math.pi * t),
        'sigmoid': lambda t: 0.5 + 1.5 / (1 + math.exp(7 * (t - 0.5))),
    }
    traced = {
        label: [m.arm(f'temperature_{i}', 98.6 + 0.1 * i, 0.38, temperature=f)]
        for i, (label, f) in enumerate(schedules.items())
    }
    for arms in traced.values():
        m.compare(arms[0], 'dense')
    m.figure('traces', 'Temperature, entropy, accuracy', **traced)
    m.figure('wall_clock', 'Accuracy against time', all=list(m.arms)[:6])
    m.diverge('soft_batch_s1', 2)
    if seeds > 7:
        del m.rows['k4'][7]
        m.problems.append('k4 seed 7: no row')
    return m


def with_gap(analysis: Analysis, name: str, **changes: Any) -> Analysis:
    """The analysis with one comparison changed."""
    gaps = analysis.gaps | {name: dataclasses.replace(analysis.gaps[name], **changes)}
    return dataclasses.replace(analysis, gaps=gaps)
