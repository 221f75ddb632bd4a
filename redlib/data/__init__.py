"""Photographs: the data sets that the paper measured, read as they are published.

fetches(params)     what a run would fetch, and how much
"""

from redlib.data.sources import COCO, VQAV2, Source, fetches

__all__ = ["COCO", "VQAV2", "Source", "fetches"]
