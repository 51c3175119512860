"""A file that a user's own methods import."""

from moe_vision.routing.routers.top_k import TopK


class Fails(TopK):
    def choose(self, params, state, features, context):
        return {'sure': features}['fairness']


class WrongSignature(TopK):
    def choose(self, params, features, context):
        return None
