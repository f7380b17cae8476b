"""What is said of a name that is no checkpoint which the commands can read, and where there is one."""

from __future__ import annotations

from pathlib import Path

from qdqpatch.checkpoint.companions import MODULES
from qdqpatch.errors import one_line
from qdqpatch.spelling import counted, spelled

ROUTES = "router_config.json"
"""What sentence-transformers writes of a model with a transformer for queries and another for documents."""


def without_config(name: str) -> str:
    """Say that a folder is no checkpoint, and where in it there is one."""
    folder = Path(name)
    text = f"{name} has no config.json, so it is not a transformers checkpoint."
    if (folder / ROUTES).is_file():
        routes = sorted(config.parent.name for config in folder.glob("*_Transformer/config.json"))
        return (
            f"{text} It routes texts to {counted(len(routes), 'transformer')}: name one of them, such as "
            f"{folder / routes[0] if routes else folder}."
        )
    if (folder / MODULES).is_file():
        return (
            f"{text} An older sentence-transformers wrote its transformer into a folder of its own: save "
            f"it once more, SentenceTransformer({name!r}).save_pretrained(...), to another folder."
        )
    within = sorted(inner.parent.name for inner in folder.glob("*/config.json"))
    return f"{text} There is one in {name}/{within[0]}." if within else text


def unreadable(name: str, error: Exception) -> str:
    """Say why transformers did not read a config.

    Args:
        name: A folder, or a model's name on the hub.
        error: What transformers raised.
    """
    if "trust_remote_code" in str(error):
        way = spelled(f"AutoModel.from_pretrained({name!r}, trust_remote_code=True)", "--trust-remote-code")
        return (
            f"{name} is of a type that transformers does not know, and brings code of its own, which is run "
            f"only where you trust it: {way}."
        )
    if Path(name).is_dir():
        return f"Cannot read the config of {name}: {one_line(error)}"
    return f"There is no folder {name} here, and no model of that name on the hub: {one_line(error)}"
