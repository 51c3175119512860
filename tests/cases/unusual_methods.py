"""Methods that are right, in ways that a check might take for mistakes; and who is to blame."""

import dataclasses
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
from own_helper import Fails, WrongSignature

from moe_vision.layers.experts import DepthwiseConv, Expert
from moe_vision.layers.parts import conv
from moe_vision.models.conv import ConvNet
from moe_vision.routing.router import Router
from moe_vision.routing.types import SoftRouting, pick, top_k_ids


class Plain(Router):
    def logits(self, params, features, context):
        return features @ params['kernel']

    def choose(self, params, state, features, context):
        logits = self.logits(params, features, context)
        ids = top_k_ids(logits, self.k)
        return self.routing(context, logits, ids, pick(jax.nn.softmax(logits), ids))


class ReadsTokens(Plain):
    """Takes the tokens themselves, vectors or maps, instead of their features."""

    needs = ('bank',)

    def logits(self, params, features, context):
        tokens = context.view.tokens.astype(jnp.float32)
        return tokens.mean(tuple(range(2, tokens.ndim - 1))) @ params['kernel']


class ReadsKinds(Plain):
    needs = ('bank',)

    def logits(self, params, features, context):
        return features @ params['kernel'] + context.view.bank['kind_0_in_kernel'].mean()


class ObservesTokens(Plain):
    needs = ('bank',)

    def observe(self, routing, context):
        tokens = context.view.tokens
        return {'size': jnp.square(tokens).sum(tuple(range(1, tokens.ndim)))}


class KeepsProducts(Plain):
    """Keeps how often two experts are probable for the same token: a product in training alone."""

    def init_state(self):
        return {'together': jnp.zeros((self.num_ids, self.num_ids))}

    def observe(self, routing, context):
        probs = routing.probs * context.valid[..., None]
        return {'pairs': jnp.einsum('gtn,gtm->gnm', probs, probs)}

    def update_state(self, state, sums):
        return {'together': state['together'] + sums['pairs']}


class Jits(Plain):
    """Hands the context, and what it sees of the experts, to programs of its own."""

    needs = ('bank',)

    def logits(self, params, features, context):
        def run(x, context):
            return x * context.valid[..., None] + 0 * context.view.tokens.mean()

        return jax.jit(run)(features, context) @ params['kernel']


class NullTwice(Plain):
    """Sends unsure tokens to one null expert with all their choices."""

    @property
    def num_ids(self):
        return self.num_experts + 1

    def choose(self, params, state, features, context):
        routing = super().choose(params, state, features, context)
        unsure = routing.logits.max(-1, keepdims=True) < 1.0
        ids = jnp.where(unsure, self.num_experts, routing.expert_of_choice)
        return dataclasses.replace(routing, expert_of_choice=ids)


class CarriesAll(Plain):
    """Carries the logits of all layers, as many as there are."""

    def choose(self, params, state, features, context):
        own, at = features @ params['kernel'], self.place
        before = context.carry
        if before is None:
            before = jnp.zeros((*own.shape[:2], at.layers, own.shape[-1]))
        carry = before.at[:, :, at.layer].set(own)
        logits = carry.sum(2)
        ids = top_k_ids(logits, self.k)
        return self.routing(context, logits, ids, pick(jax.nn.softmax(logits), ids), carry=carry)


class OnlyOne(Plain):
    def __init__(self, args, place):
        super().__init__(args, place)
        if self.k != 1:
            raise ValueError('k must be 1')


class UncountedSoft(Router):
    """Runs all experts and does not say so."""

    def choose(self, params, state, features, context):
        logits = features @ params['kernel']
        probs = jax.nn.softmax(logits)
        return SoftRouting(probs, logits, probs[..., None], None)


class SoftOfUnknownSize(UncountedSoft):
    ignores = ('k', 'capacity_factor', 'eval_capacity_factor', 'capacity_multiple', 'priority')


class OwnSoft(SoftOfUnknownSize):
    def room(self, capacity):
        return Fraction(self.num_experts)


class OfKinds(Plain):
    """Prefers the experts of the second kind, wherever they are."""

    def logits(self, params, features, context):
        return features @ params['kernel'] + jnp.asarray(self.place.kinds) % 2


class DrawsForItsLoss(Plain):
    def choose(self, params, state, features, context):
        routing = super().choose(params, state, features, context)
        drawn = jax.vmap(lambda key: jax.random.normal(key, (3,)))(context.keys(0))
        return dataclasses.replace(routing, aux={'negatives': drawn})


class LoopsInTraining(Plain):
    """Goes over groups one by one where their number is known."""

    def logits(self, params, features, context):
        if context.train:
            each = [features[g : g + 1] for g in range(features.shape[0])]
            features = jnp.concatenate(each)
        return features @ params['kernel']


def size(routing, context, view):
    each = jnp.where(context.valid, jnp.abs(routing.logits).mean(-1), 0.0)
    return each.sum(1) / jnp.maximum(context.valid.sum(1), 1)


def of_units(routing, context, view):
    return size(routing, context, view)


of_units.needs = ('own_units',)


class AnyTokens(Expert):
    """Says of no kind of tokens that it needs it, and runs on the maps of its network."""

    supplies = ('own_units',)

    def shapes(self):
        return {'kernel': [(3, 3, self.width, self.width), jax.nn.initializers.he_normal()]}

    def apply(self, params, x):
        return conv(jax.nn.relu(x), params['kernel'])


class Positions(Expert):
    """Knows how large its maps are."""

    needs = ('map',)

    def shapes(self):
        return {'scale': ((4, 4, self.width), jax.nn.initializers.ones)}

    def apply(self, params, x):
        return x * params['scale'].astype(x.dtype)


class OwnDepthwise(DepthwiseConv):
    """Its norms allow no other width than multiples of their groups."""


class NoCast(Expert):
    """Right in a network of float32 alone."""

    def shapes(self):
        return {'w': ((self.width, self.width), jax.nn.initializers.he_normal())}

    def apply(self, params, x):
        return x @ params['w']


# who is to blame


class Forgets(Plain):
    def choose(self, params, state, features, context):
        return {'a': 1}['b']


def forgets(routing, context, view):
    return {'a': 1}['c']


class Derived(WrongSignature):
    """Inherits what cannot be called from a file of the user's."""


class FromElsewhere(Fails):
    """Inherits what raises from a file of the user's."""


class Property(Plain):
    @property
    def num_ids():
        return 4


class StateOfAList(Plain):
    def init_state(self):
        return [1]


class NeedsAWord(Plain):
    needs = 'bank'


class OwnNet(ConvNet):
    """A backbone through whose frames all that routers raise goes."""

    @nn.compact
    def __call__(self, images, step):
        return super().__call__(images, step)


def balance_of_state(routing, context, view):
    """Reads what the router `bias_balanced` alone keeps."""
    return jnp.broadcast_to(jnp.square(view.state['bias']).mean(), context.valid.shape[:1])
