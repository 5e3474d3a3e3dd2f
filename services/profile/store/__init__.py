"""All SQL of the profile service: `locking` (who is concerned), `reading`, `writing`. Batches go in and out as arrays."""
