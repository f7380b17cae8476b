"""A task's metrics of models in torch and in engines, side by side."""
