"""Import: the weights of timm, DeiT, DINO, torchvision, Google's ViT or V-MoE, from a file.

The logits are those of the other program. What it computes in another way than this package does by
default (gelu by erf, torch's padding, exact variances, V-MoE's router) is set in the config of the
result. Positions are interpolated to another number of patches. A classifier for other classes is
new. All else must fit.

If images were normalised otherwise there, the first layer takes that over: with x the image, m and
s the mean and deviation here and m', s' those there, (x - m') / s' = ((x - m) / s) s / s' +
(m - m') / s'. That is exact where the first layer does not pad, because it has a bias.

Axes: D width, N patches, C channels.
"""

import dataclasses
import math
from collections.abc import Iterable

import jax
import numpy as np

import input_pipeline
from moe_vision.common.errors import UserError
from moe_vision.config.schema import Config
from moe_vision.surgery.kind import Kind, with_fields
from moe_vision.surgery.state import Arrays, State, Table, in_head
from moe_vision.surgery.weights.names import TABLES, Names

_SILENT = 'num_batches_tracked'  # of torch's batch norm: a count that nothing reads
_ROUTER = {
    'gate': 'softmax_top_k',
    'renormalize': False,
    'gate_scale': 1.0,
    'normalize_inputs': False,
}
_HALF = (0.5,)  # V-MoE scales images to -1 to 1
_HINTS = {
    'experts': 'the file is dense; import it into a dense network, and then upcycle that',
    'router': 'the file is dense; import it into a dense network, and then upcycle that',
    'resnet': 'experts have no batch norm; use --config.model.moe.placement=none',
}


class Import(Kind):
    def configured(self, source: State, source_config: Config | None, config: Config) -> Config:
        model, naming = config.model, source.about['names']
        if (model.name, naming) not in TABLES:
            known = ', '.join(sorted(b for b, n in TABLES if n == naming))
            raise UserError(
                f"--from holds weights for {known}, but model.name is '{model.name}'; "
                f'give a config with one of these backbones.'
            )
        if naming == 'v_moe':
            return _as_v_moe(config, source.params)
        exact = {'activation': 'gelu_erf', 'exact_variance': True, 'padding': 'torch'}
        args = with_fields(model.args, exact)
        moe = model.moe
        if moe.placement != 'none':
            moe = dataclasses.replace(moe, expert_args=with_fields(moe.expert_args, exact))
        return dataclasses.replace(config, model=dataclasses.replace(model, args=args, moe=moe))

    def __call__(
        self, source: State, source_config: Config | None, fresh: State, config: Config
    ) -> State:
        naming = source.about['names']
        names = TABLES[config.model.name, naming](config.model.args)
        new_head, told = self._head(source, fresh, names)
        table = Table(source.params)
        table.leave(*(name for name in source.params if name.endswith(_SILENT)))
        with_token = getattr(config.model.args, 'pool', '') == 'token'

        def taken(path: str, own: np.ndarray) -> np.ndarray:
            name, make = names.get(path, ('', np.asarray))
            if in_head(path) and new_head:
                table.leave(name)
                return own
            shape = np.shape(source.params.get(name, own))
            if path != 'position' or len(shape) != 3 or shape[1] == own.shape[1]:
                return table.take(path, own, name, make, _why(path, config))
            before, tokens = shape[1], own.shape[1]
            told.append(f'interpolated positions from {before} to {tokens} tokens')
            return table.take(path, own, name, lambda x: interpolated(x, tokens, with_token))

        params = {path: taken(path, x) for path, x in fresh.params.items()}
        statistics = {path: taken(path, x) for path, x in fresh.batch_stats.items()}
        table.finish(f"import into '{config.model.name}'")
        told.insert(0, f'took {len(params) + len(statistics)} arrays')
        moved, normalised = self._normalised(params, naming, config)
        return State(moved, statistics, fresh.router_state, told=(*told, *normalised))

    def _head(self, source: State, fresh: State, names: Names) -> tuple[bool, list[str]]:
        """Whether the classifier is new, and why."""
        name = names['classifier/bias'][0]
        if self.args.head == 'new':
            return True, ['the classifier is new, as asked']
        if name not in source.params:
            return True, ['the classifier is new: the file has none']
        ours, there = fresh.params['classifier/bias'].size, source.params[name].size
        if self.args.classes:
            theirs = _class_names(self.args.classes)
            if len(theirs) != there:
                raise UserError(
                    f"--classes is '{self.args.classes}', which names {len(theirs)} classes; the "
                    f'classifier in the file has {there}.'
                )
            if theirs != fresh.class_names:
                return True, ['the classifier is new: the classes there have other names']
            return False, ['the classifier is taken: its classes have the same names']
        if ours != there:
            return True, [f'the classifier is new: it has {there} classes there and {ours} here']
        return False, [
            f'the classifier is taken, its {ours} classes in the order of the data set here; '
            '--classes=FILE compares their names, --head=new begins with another'
        ]

    def _normalised(
        self, params: dict[str, np.ndarray], naming: str, config: Config
    ) -> tuple[Arrays, list[str]]:
        """The parameters for images that are normalised as they are here."""
        channels = params['stem/kernel'].shape[2]
        here = [np.resize(x, channels) for x in input_pipeline.mean_std(config.dataset)]
        given = (self.args.mean, self.args.std)
        if not given[0] and naming == 'v_moe':
            given = (_HALF, _HALF)
        if not given[0]:
            return params, [
                f'images are taken to be normalised as here: mean {_listed(here[0])} and deviation '
                f'{_listed(here[1])}; if the network there had others, give --mean and --std'
            ]
        if not all(len(x) in (1, channels) for x in given):
            raise UserError(f'mean and std have {len(given[0])} values; images have {channels}.')
        there = [np.resize(x, channels) for x in given]
        if np.allclose(here, there):
            return params, []
        if 'stem/bias' not in params:
            raise UserError(
                'the first layer of this network pads and has no bias, so it cannot take over '
                'another --mean and --std; normalise the images as there (mean and std of the data '
                'set).'
            )
        (m, s), (m2, s2) = here, there
        kernel = params['stem/kernel']
        moved = {
            'stem/kernel': kernel * (s / s2)[:, None],
            'stem/bias': params['stem/bias'] + np.einsum('hwco,c->o', kernel, (m - m2) / s2),
        }
        return params | {n: x.astype(np.float32) for n, x in moved.items()}, [
            f'the first layer takes over that images were normalised by mean {_listed(there[0])} '
            f'and deviation {_listed(there[1])}'
        ]


def _as_v_moe(config: Config, params: Arrays) -> Config:
    """The config with V-MoE's router, its slots in multiples of 4, and its layer of tanh."""
    model, moe = config.model, config.model.moe
    wide = params['pre_logits/bias'].size if 'pre_logits/bias' in params else 0
    args = with_fields(model.args, {'representation': wide})
    if moe.placement != 'none' and model.twin == 'none':
        if moe.router != 'top_k':
            raise UserError(f"model.moe.router is '{moe.router}'; V-MoE has router 'top_k'.")
        router = with_fields(moe.router_args, _ROUTER)
        moe = dataclasses.replace(moe, router_args=router, capacity_multiple=4)
    return dataclasses.replace(config, model=dataclasses.replace(model, args=args, moe=moe))


def interpolated(positions: np.ndarray, tokens: int, class_token: bool) -> np.ndarray:
    """Positions [1, N, D] of a square grid for another number of patches, by cubic interpolation.

    Args:
      tokens: N of the result, with the class token if it has one. Its position stays as it is.

    Raises:
      ValueError: the patches make no square.
    """
    first, grid = positions[:, :class_token], positions[:, class_token:]
    if not class_token and math.isqrt(grid.shape[1]) ** 2 != grid.shape[1]:
        grid = grid[:, 1:]  # the class token there, which has none here
    sides = [math.isqrt(n) for n in (grid.shape[1], tokens - class_token)]
    if [n * n for n in sides] != [grid.shape[1], tokens - class_token]:
        raise ValueError('these are no squares')
    before, after = sides
    square = grid.reshape(1, before, before, -1)
    resized = jax.image.resize(square, (1, after, after, square.shape[-1]), 'cubic')
    return np.concatenate([first, np.asarray(resized).reshape(1, after * after, -1)], 1)


def _why(path: str, config: Config) -> str:
    block, _, rest = path.partition('/')
    routed = rest.split('/')[0]
    if config.model.name == 'resnet' and block.startswith('block_'):
        return _HINTS['resnet']
    return _HINTS.get(routed, 'the file has no such array')


def _class_names(path: str) -> tuple[str, ...]:
    try:
        with open(path, encoding='utf-8') as file:
            return tuple(line.rstrip('\n') for line in file if line.strip())
    except (OSError, ValueError) as e:
        raise UserError(f"--classes is '{path}', which cannot be read ({e}).") from e


def _listed(values: Iterable[float]) -> str:
    return ', '.join(f'{v:.3g}' for v in values)
