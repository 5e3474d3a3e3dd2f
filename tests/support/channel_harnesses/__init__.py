"""Peers of the channels' adapters: one file an adapter, named like it, with `harness(kind, folder)`."""
