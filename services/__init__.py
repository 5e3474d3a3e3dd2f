"""The four services, one folder each, and the process that runs them."""
