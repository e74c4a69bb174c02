"""The five published instructions, apart from the model that follows them: they can be named without loading torch.

What each asks for is that of arXiv 2507.22729 and its code; the words are ours. Small models do better when they are
told to answer with the text alone.
"""

import random
from collections.abc import Sequence

INSTRUCTIONS = {
    "detail": "Rewrite the following text with more detail, but keep its meaning. "
    "Answer with the rewritten text alone.",
    "simpler": "Say the following text in simpler language. Answer with the rewritten text alone.",
    "teacher": "You are a teacher at school. Explain the following text to a class in your own words. "
    "Answer with the explanation alone.",
    "metaphor": "Write a metaphor that expresses the same idea as the following text. Answer with the metaphor alone.",
    "question": "Which natural question might someone ask after reading the following text? "
    "Answer with the question alone.",
}
"""What the model is told, by the name that its pairs carry."""


def choose_instructions(names: Sequence[str], count: int, chance: random.Random) -> list[str]:
    """``count`` different ones of the names, drawn anew for each text as published."""
    return chance.sample(list(names), min(count, len(names)))
