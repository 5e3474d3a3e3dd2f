"""How people enter a rule: one kind a file, found by this folder (see `services.triggers.entries.base`)."""
