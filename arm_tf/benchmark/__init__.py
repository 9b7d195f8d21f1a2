"""Speed and memory, with ratios."""
