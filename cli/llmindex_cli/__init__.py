"""The `llmindex` command line: parse, one library call, print."""
