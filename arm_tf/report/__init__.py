"""Finished runs as the paper's tables and figures."""
