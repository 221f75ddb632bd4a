"""Photographs: the data sets that the paper measured, read as they are published.

sources        which they are, and what a run would fetch of them
reading        a data set through `datasets.load_dataset`; pictures that cannot be read
photographs    VQAv2 and COCO, from the hub or from folders, as one record
images         where every notebook's images come from: drawn scenes, or photographs by lot
copies         whether the folders that `data_dir` should hold are there, and unchanged
benchmarks     those of Tables 1 and 2; single, several, prompts and photo ask them
"""

from redlib.data.sources import COCO, VQAV2, Source, fetches

__all__ = ["COCO", "VQAV2", "Source", "fetches"]
