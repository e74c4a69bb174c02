"""The resident searcher: a process of the user's own that keeps model and indexes loaded between two searches."""
