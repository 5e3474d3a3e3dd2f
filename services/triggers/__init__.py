"""Triggers: profile events and timers move people through rules; what a rule wants said becomes an intent."""
