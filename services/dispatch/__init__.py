"""Dispatch: intents become messages to people, and what comes back becomes events."""
