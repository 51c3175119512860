"""Makes a function that draws many arrays from a key smaller to compile, without changing a bit.

The initial values of a network are hundreds of arrays but few kinds of draws: those of one kind
have one shape and one initializer, and differ only in the key. Code for random numbers takes long
to compile, so a kind is compiled once and runs in a loop over its arrays.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

Array = jax.Array
Path = tuple[int, ...]  # what is folded into the key, one number after another


def in_loops(fn: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """`fn`, a function of one typed key, with one loop for all results of a kind.

    It is traced here, once. What no result needs, such as the forward pass that tells the shapes of
    a network's parameters, is left out.
    """
    traced = jax.jit(fn).trace(jax.eval_shape(jax.random.key, 0))
    draws, tree = list(_draws(traced.jaxpr)), jax.tree.structure(traced.out_info)
    places: dict[Any, list[int]] = {}
    for i, draw in enumerate(draws):
        places.setdefault(draw.kind, []).append(i)

    def drawn(key: Array) -> Any:
        derived = _derived(key, {path for draw in draws for path in draw.paths})
        values: dict[int, Array] = {}
        for same in places.values():
            make, keys = draws[same[0]].make, [[derived[p] for p in draws[i].paths] for i in same]
            if len({draws[i].paths for i in same}) == 1:
                values |= dict.fromkeys(same, make(*keys[0])[0])
            else:
                stacked = [jnp.stack(k) for k in zip(*keys, strict=True)]
                each = jax.lax.map(lambda k, make=make: make(*k)[0], stacked)
                values |= dict(zip(same, each, strict=True))
        return tree.unflatten([values[i] for i in range(len(draws))])

    return drawn


def _derived(key: Array, paths: Iterable[Path]) -> dict[Path, Array]:
    """The key at the end of each path; those of one length are derived together."""
    derived: dict[Path, Array] = {}
    for length, group in itertools.groupby(sorted(paths, key=lambda p: (len(p), p)), len):
        same = list(group)
        numbers = np.array(same, np.uint32).reshape(len(same), length)
        keys = jnp.broadcast_to(key, len(same))
        for column in numbers.T:
            keys = jax.vmap(jax.random.fold_in)(keys, column)
        derived |= dict(zip(same, keys, strict=True))
    return derived


@dataclasses.dataclass(frozen=True)
class _Draw:
    """The part of a program that makes one of its results from keys.

    Attributes:
      make: a function of these keys; it returns a list of one array.
      paths: how the keys derive from the key of the whole program.
      kind: equal for draws that differ in `paths` alone.
    """

    make: Callable[..., list[Array]]
    paths: tuple[Path, ...]
    kind: Any


def _draws(program: ClosedJaxpr) -> Iterator[_Draw]:
    """The draws of all results of a program."""
    jaxpr = program.jaxpr
    paths: dict[Any, Path] = {jaxpr.invars[0]: ()}
    equations = []
    for e in jaxpr.eqns:
        if e.primitive.name == 'random_fold_in' and isinstance(e.invars[1], Literal):
            if e.invars[0] in paths:
                paths[e.outvars[0]] = (*paths[e.invars[0]], int(e.invars[1].val))
                continue
        equations.append(e)
    equations, _ = _needed(equations, jaxpr.outvars)
    for result in jaxpr.outvars:
        own, read = _needed(equations, [result])
        keys = [key for key in paths if key in read]
        part = jaxpr.replace(invars=keys, outvars=[result], eqns=own)
        yield _Draw(
            jaxpr_as_fun(ClosedJaxpr(part, program.consts)),
            tuple(paths[key] for key in keys),
            _kind([*jaxpr.constvars, *keys], own, result),
        )


def _needed(
    equations: Sequence[JaxprEqn], results: Iterable[Var | Literal]
) -> tuple[list[JaxprEqn], set[Var]]:
    """The equations that the results need, and all that these and the results read."""
    read = {a for a in results if isinstance(a, Var)}
    needed = []
    for e in reversed(equations):
        if not read.isdisjoint(e.outvars):
            needed.append(e)
            read.update(a for a in e.invars if isinstance(a, Var))
    return needed[::-1], read


def _kind(given: Iterable[Var], equations: Iterable[JaxprEqn], result: Var | Literal) -> Any:
    """What equal programs have in common: variables are numbered, and compared by their types."""
    number: dict[Var, int] = {}

    def name(atom: Var | Literal) -> Any:
        if isinstance(atom, Literal):
            return str(atom.aval), np.asarray(atom.val).tobytes()
        return number.setdefault(atom, len(number)), str(atom.aval)

    def same(value: Any) -> Any:
        try:
            hash(value)
        except TypeError:
            return id(value)
        return value  # programs inside equations are equal if they are one object

    def names(atoms: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(name(a) for a in atoms)

    inside = [
        (
            e.primitive,
            names(e.invars),
            names(e.outvars),
            tuple((n, same(v)) for n, v in sorted(e.params.items())),
        )
        for e in equations
    ]
    return names(given), tuple(inside), name(result)
