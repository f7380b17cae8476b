"""Lets `python -m qdqpatch` be the same as `qdqpatch`."""

from qdqpatch.cli import main

main(prog_name="qdqpatch")
