"""What a run does, step by step: one kind a file, found by this folder (see `services.triggers.steps.base`)."""
