"""What came out of an experiment: its MLflow runs compared, in a terminal, as pictures and as a page."""
