"""The kinds of conditions, one a module, found by this folder."""
