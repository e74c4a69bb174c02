"""Text to unit vectors: a decoder-only LLM, a prompt and a pooling."""

import os

# Threads that wait for each other by spinning take the processor from the very thread they wait for, wherever anything
# else runs on the machine: encoding is then twice as slow. OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
