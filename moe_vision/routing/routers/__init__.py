"""Routers, one file each; their names stand in `moe_vision.config.registry.ROUTERS`."""
