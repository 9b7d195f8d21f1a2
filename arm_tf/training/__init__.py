"""One run from its settings to its result: configuration, folder, steps, evaluation, resuming."""
