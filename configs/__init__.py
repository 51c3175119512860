"""Configs: `base` holds every common key once; the other files change what their name says.

A file `*_ablation.py` holds a table of arms and takes one by name, such as
`imagenet_ablation.py:k1_same_c`.
"""
