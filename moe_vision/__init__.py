"""Sparse mixture-of-experts for vision: routed layers, compute leverage, honest comparisons."""
