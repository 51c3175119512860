"""Routers, a file for each family. `moe_vision.config.registry.ROUTERS` lists their names."""
