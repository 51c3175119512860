"""A script for eight virtual devices: prints compiled programs as JSON of HLO text.

The mesh is 2 x 4 with axes ('data', 'expert'); x is float32 [8, 16], one row on each device.
"""

import json

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

MESH = jax.make_mesh((2, 4), ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)
BOTH = P(('data', 'expert'))


def mapped(fn, out_specs=BOTH):
    return jax.shard_map(fn, mesh=MESH, in_specs=BOTH, out_specs=out_specs, check_vma=False)


def exchange(x):  # three times in a loop, [1, 16] as four pieces of 4
    def body(x, _):
        with jax.named_scope('block_1'):
            pieces = x.reshape(4, 4)
            return jax.lax.all_to_all(pieces, 'expert', 0, 0, tiled=True).reshape(1, 16), None

    return jax.lax.scan(body, x, None, length=3)[0]


def gather(x):
    with jax.named_scope('block_2'):
        return jax.lax.all_gather(x, 'data', tiled=True)


def reduce(x):
    return {'a': jax.lax.psum(x, ('data', 'expert')), 'b': jax.lax.psum(x[:, :3], 'expert')}


def scatter(x):
    return jax.lax.psum_scatter(x[0], 'expert', tiled=True)


def permute(x):
    return jax.lax.ppermute(x, 'expert', [(0, 1), (1, 2), (2, 3), (3, 0)])


def main() -> None:
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(MESH, BOTH))
    texts = {}
    for fn in (exchange, gather, reduce, scatter, permute):
        specs = P('expert') if fn is gather else BOTH
        texts[fn.__name__] = jax.jit(mapped(fn, specs)).lower(x).compile().as_text()
    print(json.dumps(texts))


if __name__ == '__main__':
    main()
