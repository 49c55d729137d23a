"""Joint embeddings of text and audio. `EMBEDDERS` names the kinds that a world may hold."""

from musicrl.embedders.base import JointEmbedder
from musicrl.embedders.mulan import MuLan

EMBEDDERS = {"mulan": MuLan}

__all__ = ["EMBEDDERS", "JointEmbedder", "MuLan"]
