"""MLflow runs, previews and the report."""
