"""Look, plan, then change: the only room whose code changes a model."""
