"""How routing works, on two examples small enough for pencil and paper. Start here.

A router says which experts each token chooses. A plan gives each choice a slot, which is a row in
the buffer of its expert, or drops it. Then the plan moves tokens into slots, runs the experts on
their buffers, and brings the outputs back to the tokens.

Every number below is computed by hand.
Axes: G = 1 group, T = 4 tokens, K = 2 choices of each token, E experts, C slots of each expert.
"""

import jax.numpy as jnp

from moe_vision.routing import telemetry
from moe_vision.routing.capacity import capacity
from moe_vision.routing.plan import index_plan
from moe_vision.routing.types import Context, Routing, pick, top_k_ids

# Four tokens whose only feature is a number. All are real; padding would be False here.
TOKENS = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1)  # [G, T, D]
CONTEXT = Context(valid=jnp.ones((1, 4), bool), key=None, group=jnp.arange(1))
EMPTY = None  # a slot without a token: its entry in a table means nothing


def expect(table, *rows):
    """The table has these rows. EMPTY stands for any value."""
    got = [
        [None if want is EMPTY else value for value, want in zip(values, row, strict=True)]
        for values, row in zip(table.tolist(), rows, strict=True)
    ]
    assert got == [list(row) for row in rows]


def test_each_token_chooses_two_experts_and_one_choice_is_dropped():
    # What does the router say? A probability for each of 4 experts; each row sums to 1.
    probs = jnp.asarray(
        [
            [0.5, 0.25, 0.125, 0.125],
            [0.5, 0.125, 0.25, 0.125],
            [0.25, 0.5, 0.125, 0.125],
            [0.125, 0.125, 0.5, 0.25],
        ]
    )[None]  # [G, T, E]

    # Who chooses whom? Each token chooses its two most probable experts, the best one first. The
    # probability of a chosen expert is the gate, the weight of that expert's output.
    ids = top_k_ids(probs, 2)
    expect(ids[0], [0, 1], [0, 2], [1, 0], [2, 3])
    gate = pick(probs, ids)
    expect(gate[0], [0.5, 0.25], [0.5, 0.25], [0.5, 0.25], [0.5, 0.25])
    routing = Routing(
        probs=probs,
        logits=jnp.log(probs),
        expert_of_choice=ids,
        gate=gate,
        active=jnp.ones((1, 4, 2), bool),
    )

    # How much room is there? 4 tokens with 2 choices each are 8 choices. With a capacity factor of
    # 1 the 4 experts share them evenly: 2 slots each.
    slots = capacity(1.0, k=2, tokens=4, num_experts=4)
    assert slots == 2

    # Who gets the slots? All first choices come before all second ones, each in the order of the
    # tokens. So token 2, whose first choice is expert 1, sits before token 0, whose second choice
    # it is. Expert 0 has no slot left when the second choices come: that of token 2 is dropped.
    plan = index_plan(routing, num_experts=4, capacity=slots)
    expect(
        plan.src_token[:, 0],
        [0, 1],  # expert 0: the first choices of tokens 0 and 1
        [2, 0],  # expert 1: the first choice of token 2, the second choice of token 0
        [3, 1],  # expert 2: the first choice of token 3, the second choice of token 1
        [3, EMPTY],  # expert 3: the second choice of token 3
    )
    expect(plan.src_choice[:, 0], [0, 0], [0, 1], [0, 1], [1, EMPTY])  # 0: first, 1: second
    expect(plan.filled[:, 0], [True, True], [True, True], [True, True], [True, False])

    # The same, as the tokens see it. The slots of all experts are numbered through: 0 and 1 belong
    # to expert 0, 2 and 3 to expert 1, and so on.
    expect(
        plan.slot[0],
        [0, 3],  # token 0: the first slot of expert 0, the second slot of expert 1
        [1, 5],  # token 1: the second slot of expert 0, the second slot of expert 2
        [2, EMPTY],  # token 2: the first slot of expert 1, and none for its second choice
        [4, 6],  # token 3: the first slot of expert 2, the first slot of expert 3
    )
    expect(plan.keep[0], [True, True], [True, True], [True, False], [True, True])
    assert plan.expert_of_choice[0, 2, 1] == 0  # a dropped choice still knows its expert

    # What do the experts see? Their slots, with zero in the empty one. Let expert 0 multiply by 1,
    # expert 1 by 10, expert 2 by 100 and expert 3 by 1,000.
    def experts(buffers):  # [E, C, D]
        expect(buffers[..., 0], [1, 2], [3, 1], [4, 2], [4, 0])
        return buffers * jnp.asarray([1.0, 10.0, 100.0, 1000.0])[:, None, None]

    # What comes back? Each token gets the sum of gate * output over the choices that were kept.
    output = plan.apply(TOKENS, experts)
    expect(
        output[0],
        [0.5 * 1 + 0.25 * 10],  # token 0: 3
        [0.5 * 2 + 0.25 * 200],  # token 1: 51
        [0.5 * 30],  # token 2: 15, without the 0.25 * 3 that was dropped
        [0.5 * 400 + 0.25 * 4000],  # token 3: 1,200
    )

    # What is counted? 1 of 8 choices was dropped. Token 2 kept its first choice: an orphan would
    # have lost both. Expert 0 was chosen 3 times and has 2 slots.
    counts = telemetry.count(routing, plan, CONTEXT)
    assert counts['choices'] == 8 and counts['dropped'] == 1 and counts['orphans'] == 0
    expect(counts['chosen'], [3, 2, 2, 1])
    expect(counts['kept'], [2, 2, 2, 1])
    rates = telemetry.summarize({name: sums[0] for name, sums in counts.items()})
    assert rates['drop_rate'] == 1 / 8 and rates['utilisation'] == 7 / 8


def test_a_null_expert_takes_no_slot_is_no_drop_and_gives_nothing():
    # There are 2 experts, 0 and 1. Ids from 2 on are null experts: a token that chooses one asks
    # for less computation. Every choice has gate 0.5 here. (Router `null_experts` gives null
    # choices gate 0; this example shows that the plan ignores their gate anyway.)
    ids = jnp.asarray([[[0, 2], [3, 1], [0, 1], [2, 3]]])
    even = jnp.full((1, 4, 4), 0.25)  # probabilities and logits matter to losses, not to the plan
    routing = Routing(
        probs=even,
        logits=even,
        expert_of_choice=ids,
        gate=jnp.full(ids.shape, 0.5),
        active=jnp.ones(ids.shape, bool),
    )

    # Who wants a slot? 4 of the 8 choices.
    plan = index_plan(routing, num_experts=2, capacity=2)
    expect(plan.wants[0], [True, False], [False, True], [True, True], [False, False])

    # Who gets one? All who want one. Only the 2 true experts have buffers: 4 slots, all filled.
    expect(
        plan.src_token[:, 0],
        [0, 2],  # expert 0: the first choices of tokens 0 and 2
        [1, 2],  # expert 1: the second choices of tokens 1 and 2
    )
    assert plan.filled.all()
    expect(plan.keep[0], [True, False], [False, True], [True, True], [False, False])

    # What comes back? Let expert 0 multiply by 10 and expert 1 by 100.
    output = plan.apply(TOKENS, lambda buffers: buffers * jnp.asarray([[[10.0]], [[100.0]]]))
    expect(
        output[0],
        [0.5 * 10],  # token 0: 5; its null choice adds nothing
        [0.5 * 200],  # token 1: 100
        [0.5 * 30 + 0.5 * 300],  # token 2: 165
        [0],  # token 3 chose two null experts; the shortcut around the layer keeps its features
    )

    # What is counted? No choice was dropped, and token 3 is no orphan: it lost nothing. Half of the
    # 8 choices are null, so the 4 tokens took 1 true expert each on average.
    counts = telemetry.count(routing, plan, CONTEXT)
    assert counts['choices'] == 4 and counts['dropped'] == 0 and counts['orphans'] == 0
    expect(counts['chosen'], [2, 2, 2, 2])
    expect(counts['kept'], [2, 2])
    rates = telemetry.summarize({name: sums[0] for name, sums in counts.items()})
    assert rates['null_rate'] == 1 / 2 and rates['choices_per_token'] == 1
