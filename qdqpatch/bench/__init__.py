"""Latency, throughput, size, load time and memory of models, side by side in torch and the engines."""
