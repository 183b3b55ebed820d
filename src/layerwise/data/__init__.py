"""Images and texts: `load` loads a data set by name, and a `Loader` gives batches of it."""

from layerwise.data.augment import Augment
from layerwise.data.batches import Batches, batches_of
from layerwise.data.curriculum import Curriculum, read_scores
from layerwise.data.images import Images
from layerwise.data.load import NAMES, load
from layerwise.data.loader import Loader
from layerwise.data.splits import Splits
from layerwise.data.stream import Stream
from layerwise.data.text import Text
from layerwise.data.throughput import throughput

__all__ = [
    "NAMES",
    "Augment",
    "Batches",
    "Curriculum",
    "Images",
    "Loader",
    "Splits",
    "Stream",
    "Text",
    "batches_of",
    "load",
    "read_scores",
    "throughput",
]
