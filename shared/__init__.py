"""What the four services must agree on, and plumbing without domain words. Imports no service."""
