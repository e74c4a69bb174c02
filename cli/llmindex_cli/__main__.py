"""``python -m llmindex_cli`` is ``llmindex``."""

import sys

from llmindex_cli.main import main

sys.exit(main())
