"""Conditions as SQL over the `cdp` views: who of the whole base meets one, as of a moment."""
