"""The paper's univariate experiment."""
