"""Lets `python -m qdqpatch` be the same as `qdqpatch`."""

from qdqpatch.cli import main

if __name__ == "__main__":
    main(prog_name="qdqpatch")
