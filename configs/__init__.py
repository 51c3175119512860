"""Configs: `base` holds every common key once; the others change what their name says."""
