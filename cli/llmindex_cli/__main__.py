"""``llmindex``, and ``python -m llmindex_cli``: the command line as a process of its own."""

import gc
import sys

from llmindex_cli.loading import loading


def main() -> int:
    """Import the command line, in which the garbage collector has nothing to look for, and run it."""
    try:
        with loading():
            if sys.argv[1:2] == ["search"]:
                from llmindex_cli.resident import ahead

                ahead.send(sys.argv[1:])
            from llmindex_cli.main import main as run

            gc.freeze()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
