"""What a config will do, in a table, before anything is compiled."""

import math

import jax

import input_pipeline
from input_pipeline import DatasetInfo
from moe_vision import mesh as mesh_lib
from moe_vision import rules
from moe_vision.durations import Durations, durations
from moe_vision.leverage import Leverage, measure
from moe_vision.settings import Config


def summary(config: Config) -> None:
    """Prints the pre-flight of a config; needs the data set's metadata, but no data."""
    info = input_pipeline.info(config.dataset)
    rules.check_with_data(config, info)
    mesh = mesh_lib.make(config.mesh.expert)
    print(text(config, info, mesh, measure(config, info),
               durations(config, info.split_sizes['train'])))


def text(config: Config, info: DatasetInfo, mesh: jax.sharding.Mesh, leverage: Leverage,
         times: Durations) -> str:
    """The pre-flight as lines."""
    model, train = config.model, config.train
    device = jax.devices()[0]
    h, w, c = info.image_shape
    sizes = ', '.join(f'{n:,} {split}' for split, n in info.split_sizes.items())
    lines = [
        f'devices     {jax.device_count()} × {device.device_kind} ({device.platform}), '
        f'mesh data {mesh.shape["data"]} × expert {mesh.shape["expert"]}, '
        f'{jax.process_count()} process{"es" if jax.process_count() > 1 else ""}',
        f'data        {info.name}: {sizes}; {info.num_classes} classes, {h}×{w}×{c}',
        f'network     {model.name}, {_network(config)}; {model.dtype}',
        f'parameters  {leverage.params_total:,} total, {leverage.params_active:,} active',
        f'training    {times.total:,} steps of {train.batch_size} images '
        f'({times.total / times.per_epoch:.1f} epochs), {train.optimizer}, '
        f'peak learning rate {train.learning_rate:g}'
        + (f', {train.micro_batches} micro-batches' if train.micro_batches > 1 else ''),
        '', *_blocks(leverage), '',
        f'rho_place {leverage.rho_place:.4f}   rho_active {leverage.rho_active:.4f}   '
        f'rho_executed {leverage.rho_executed:.4f}',
    ]
    for name, cap in leverage.capacities.items():
        if cap.capacity:
            lines.append(
                f'{name}: groups of {cap.group_size} tokens, {cap.capacity} slots per expert '
                f'(asked {model.moe.capacity_factor:g}, effective {cap.effective_factor:.3f}); '
                f'evaluation {cap.eval_capacity} slots '
                f'(asked {model.moe.eval_capacity_factor:g}, '
                f'effective {cap.eval_effective_factor:.3f})')
        else:
            lines.append(f'{name}: groups of {cap.group_size} tokens, soft, nothing is dropped')
    return '\n'.join(lines)


def _network(config: Config) -> str:
    moe, twin = config.model.moe, config.model.twin
    if moe.placement == 'none':
        return 'dense'
    routed = f'{moe.num_experts} experts, k={moe.k}, at {moe.placement}, router {moe.router}'
    if twin != 'none':
        return f'dense twin ({twin}) of: {routed}'
    return routed


def _blocks(leverage: Leverage) -> list[str]:
    """The table; blocks without products are one row."""
    rows = [('block', 'params', 'active', 'twin', 'FLOPs', 'executed', 'router')]
    small = [b for b in leverage.blocks if not b.flops_executed]
    for b in leverage.blocks:
        if b.flops_executed:
            rows.append((f'{b.name}{" *" if b.routed else ""}', f'{b.params:,}',
                         f'{b.params_active:,}', _si(b.flops_twin), _si(b.flops),
                         _si(b.flops_executed), _si(b.flops_router) if b.routed else ''))
    if small:
        n = sum(b.params for b in small)
        rows.append(('norms, embeddings', f'{n:,}', f'{n:,}', '', '', '', ''))
    total = leverage
    rows.append(('total', f'{total.params_total:,}', f'{total.params_active:,}',
                 _si(sum(b.flops_twin for b in total.blocks)), _si(total.flops),
                 _si(total.flops_executed), ''))
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    line = lambda r: '  '.join([r[0].ljust(widths[0]),  # noqa: E731
                                *[x.rjust(n) for x, n in zip(r[1:], widths[1:], strict=True)]])
    note = 'FLOPs per image, forward; * routed place; twin: the same-width dense network'
    return [note, line(rows[0]), *[line(r) for r in rows[1:]]]


def _si(n: float) -> str:
    """1234567 to '1.23M'."""
    if n == 0:
        return '0'
    power = min(int(math.log10(abs(n)) // 3), 4)
    return f'{n / 1000**power:.3g}' + ('', 'k', 'M', 'G', 'T')[power]
