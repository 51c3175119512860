"""What a router, a loss, an expert or a backbone must hold, as checks that anyone can run.

`check.check` judges the methods of one's own that a config names, by shape and before anything is
written; all commands that build a network call it. `values` judges one method by its values on
small inputs; the tests run it on every line of the tables, and so can anyone on a method of their
own: `python -m moe_vision.check --router=my.routers:Mine`.
"""
