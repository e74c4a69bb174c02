"""Groups of documents, derived from the stored vectors."""
