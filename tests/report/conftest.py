"""Makes up runs for the report's tests: the files that a trainer would write."""

import base64
import dataclasses
import functools
import io
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moe_vision import report
from moe_vision.report import charts


def png(side: int, seed: int = 0) -> str:
    """A small picture as base64 PNG: a bright blob on noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side - rng.uniform(0.3, 0.7, (2, 1, 1))
    blob = 200 * np.exp(-12 * (x**2 + y**2))[..., None] * rng.uniform(0.4, 1, 3)
    noise = rng.uniform(0, 40, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(blob + noise, 0, 255).astype(np.uint8)).save(buffer, 'PNG')
    return base64.b64encode(buffer.getvalue()).decode()


class Maker:
    """The files of one run as dictionaries, which a test changes and then saves."""

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ('blocks_1', 'blocks_2', 'head'),
        experts: int = 8,
        k: int = 2,
        classes: int = 10,
        grid: tuple[int, int] | None = None,
        soft: bool = False,
        rows: int = 60,
        side: int = 8,
        samples: int = 8,
        seed: int = 0,
    ):
        self.rng = np.random.default_rng(seed)
        self.layers, self.experts, self.k, self.soft = layers, experts, k, soft
        self.names = [f'class {i}' for i in range(classes)]
        self.rows = [self._row(i, rows, s) for i in range(1, rows + 1) for s in self._splits(i)]
        self.config = self._config(classes, side)
        self.evaluation = self._evaluation(classes, grid, side, samples)
        self.result: dict[str, Any] = {
            'test_accuracy': 0.975,
            'test_loss': 0.09,
            'test_accuracy_unbounded': 0.978,
            'best_validation_accuracy': 0.972,
            'seed': 3,
            'steps': 10 * rows,
            'params_total': 412_345,
            'params_active': 143_210,
            'rho_place': 0.421,
            'rho_active': 0.553,
            'rho_executed': 0.611,
            'flops': 3.21e6,
            'flops_executed': 3.9e6,
            'images_per_second': 18_234.5,
            'drop_rate': 0.021,
            'orphan_rate': 0.001,
            'effective_experts': 7.1,
            'dead_experts': 0,
            'collapsed': False,
        }

    @staticmethod
    def _splits(i: int) -> list[str]:
        return ['train', 'validation'] if i % 6 == 0 else ['train']

    def load(self, sharpness: float) -> np.ndarray:
        weights = np.exp(sharpness * self.rng.normal(size=self.experts))
        return weights / weights.sum()

    def _layer(self, progress: float) -> dict[str, Any]:
        load = self.load(0.25 + 0.5 * (1 - progress))
        drops = 0.0 if self.soft else 0.08 * (1 - progress)
        return {
            'load': load.tolist(),
            'load_kept': ((1 - drops) * load).tolist(),
            'drop_rate': drops,
            'orphan_rate': drops / 8,
            'effective_experts': float(1 / (load**2).sum()),
            'max_over_mean': float(load.max() * self.experts),
            'dead_experts': 0,
            'gate_entropy': math.log(self.experts) * (1 - 0.5 * progress),
            'mutual_information': 0.9 * progress,
            'utilisation': 0.8,
        }

    def _row(self, i: int, rows: int, split: str) -> dict[str, Any]:
        t = i / rows
        loss = 2.3 * math.exp(-4 * t) + 0.03 * self.rng.uniform()
        row = {
            'step': 10 * i,
            'epoch': i / 6,
            'split': split,
            'loss': loss + 0.02,
            'task_loss': loss,
            'accuracy': 1 - 0.9 * math.exp(-5 * t),
            'losses': {'importance': 0.02 * (1 - t), 'load': 0.01 * (1 - t)},
            'layers': {name: self._layer(t) for name in self.layers},
            'timing': {'images_per_second': 18_000 + 900 * self.rng.normal(), 'seconds': 0.1},
        }
        if split == 'train':
            row |= {'learning_rate': 1e-3 * math.sin(math.pi * t), 'grad_norm': 2 - t}
        else:
            row |= {'accuracy_unbounded': row['accuracy'] + 0.002}
        return row

    def _config(self, classes: int, side: int) -> dict[str, Any]:
        moe = {
            'router': 'top_k',
            'num_experts': self.experts,
            'k': self.k,
            'capacity_factor': 1.25,
            'eval_capacity_factor': 2.0,
            'router_args': {'noise': 'gaussian'},
            'losses': {'importance': 0.005, 'load': 0.005},
        }
        names = ['stem', 'blocks_0', *self.layers, 'classifier']
        blocks = [
            {
                'name': n,
                'kind': 'conv' if n.startswith('bl') else 'dense',
                'params': 40_000,
                'flops': 5e5,
                'flops_executed': 6e5 if n in self.layers else 5e5,
                'routed': n in self.layers,
            }
            for n in names
        ]
        capacity = {
            n: {
                'group_size': 64,
                'num_groups': 2,
                'capacity': 0 if self.soft else 20,
                'effective_factor': 1.25,
                'eval_capacity': 0 if self.soft else 32,
                'eval_effective_factor': 2.0,
            }
            for n in self.layers
        }
        return {
            'config': {'seed': 3, 'model': {'name': 'conv', 'moe': moe}, 'train': {'epochs': 30}},
            'versions': {'jax': '0.10.2', 'flax': '0.12.8', 'python': '3.11.2'},
            'git_commit': '0123456789abcdef',
            'config_file': 'configs/digits_k2.py',
            'dataset': {
                'name': 'digits',
                'num_classes': classes,
                'image_shape': [side, side, 1],
                'split_sizes': {'train': 1437, 'test': 360},
                'class_names': self.names,
            },
            'preflight': {
                'params_total': 412_345,
                'params_active': 143_210,
                'rho_place': 0.421,
                'rho_active': 0.553,
                'rho_executed': 0.611,
                'flops': 3.21e6,
                'flops_executed': 3.9e6,
                'blocks': blocks,
                'capacity': capacity,
            },
        }

    def _evaluation(
        self, classes: int, grid: tuple[int, int] | None, side: int, samples: int
    ) -> dict[str, Any]:
        layers = {}
        for name in self.layers:
            counts = self.rng.gamma(0.4, 90, (self.experts, classes))
            values = self._layer(1.0)
            values['expert_by_class'] = (counts if self.soft else np.rint(counts)).tolist()
            layers[name] = values
        confusion = self.rng.poisson(0.3, (classes, classes)) + 35 * np.eye(classes)
        right = self.rng.uniform(size=int(confusion.sum())) < 0.95
        return {
            'split': 'test',
            'images': len(right),
            'correct': base64.b64encode(np.packbits(right).tobytes()).decode(),
            'class_names': self.names,
            'layers': layers,
            'confusion': confusion.tolist(),
            'samples': [self._sample(i, classes, grid, side) for i in range(samples)],
            'mistakes': [self._mistake(i, classes, side) for i in range(samples)],
        }

    def _sample(
        self, i: int, classes: int, grid: tuple[int, int] | None, side: int
    ) -> dict[str, Any]:
        def route() -> dict[str, Any]:
            tokens = grid[0] * grid[1] if grid else 1
            k = self.experts if self.soft else self.k
            ids = [
                list(range(k))
                if self.soft
                else self.rng.choice(self.experts, k, replace=False).tolist()
                for _ in range(tokens)
            ]
            gates = [np.sort(self.rng.dirichlet(np.ones(k)))[::-1].tolist() for _ in range(tokens)]
            kept = [(self.rng.uniform(size=k) > 0.15).tolist() for _ in range(tokens)]
            return {
                'grid': list(grid) if grid else None,
                'experts': ids,
                'gates': gates,
                'kept': kept,
            }

        label = i % classes
        return {
            'image_png': png(side, i),
            'label': label,
            'prediction': (label + (i % 5 == 4)) % classes,
            'layers': {name: route() for name in self.layers},
        }

    @staticmethod
    def _mistake(i: int, classes: int, side: int) -> dict[str, Any]:
        return {
            'index': 7 * i,
            'file': f'test/class {i % classes}/{i}.png',
            'image_png': png(side, 100 + i),
            'label': i % classes,
            'prediction': (i + 1) % classes,
            'probability': 0.99 - 0.01 * i,
        }

    def save(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes the files; a part set to an empty dictionary is left out."""
        (folder / 'metrics').mkdir(parents=True)
        half = len(self.rows) // 2
        for number, rows in enumerate((self.rows[half:], self.rows[:half])):
            lines = ''.join(json.dumps(row) + '\n' for row in rows)
            (folder / 'metrics' / f'{number}.jsonl').write_text(lines)
        for name in ('config', 'result', 'evaluation'):
            if getattr(self, name):
                (folder / f'{name}.json').write_text(json.dumps(getattr(self, name)))
        return folder


@pytest.fixture(scope='session')
def make() -> type[Maker]:
    return Maker


def known(value: Any) -> Any:
    """What is equal for equal arguments of a picture."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value):
        return tuple(known(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, (list, tuple)):
        return type(value).__name__, *map(known, value)
    return type(value).__name__, value


def once(draw: Callable) -> Callable:
    """Draws each picture once."""
    pictures: dict[Any, str] = {}

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> str:
        key = known(args), known(tuple(sorted(kwargs.items())))
        if key not in pictures:
            pictures[key] = draw(*args, **kwargs)
        return pictures[key]

    return drawn


REMEMBERED = {name: once(getattr(charts, name)) for name in ('lines', 'shares', 'bars')}


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page takes over the pictures that an earlier one has, which take most of its time."""
    for name, draw in REMEMBERED.items():
        monkeypatch.setattr(charts, name, draw)


@pytest.fixture
def page(tmp_path: pathlib.Path, remembered: None) -> Callable[[Maker], str]:
    """Saves a run, writes its report, returns the HTML."""

    def write(maker: Maker) -> str:
        path = report.write(maker.save(tmp_path / 'run'))
        return pathlib.Path(path).read_text()

    return write
