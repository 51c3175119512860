"""A pod checked without a pod: the training step compiled by the TPU compiler on any machine.

`python -m moe_vision.pod --config=FILE --topology=v5e:16x16`; docs/pod.md says how to read it.
"""
