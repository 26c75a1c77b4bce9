"""Bundle templates, the builder and its checks."""
