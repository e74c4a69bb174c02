"""Text to unit vectors: a decoder-only LLM, a prompt and a pooling."""

import os

# OpenMP and oneDNN read these when torch is loaded.
#
# Threads that wait for each other by spinning take the processor from the very thread they wait for, wherever anything
# else runs on the machine; to sleep and be woken takes longer than many a step. So they spin for some 20 microseconds
# where the runtime is GNU's, which obeys the second of these, and sleep at once where it is another.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "8000")
# A matrix product is compiled for each new shape, and texts bring a thousand shapes: kept, they take hundreds of MB. A
# batch needs a handful and two for each length of its texts, and uses all of them in each layer.
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
