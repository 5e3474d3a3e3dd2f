"""All SQL of dispatch, a file for each act. Statements work on batches: their number does not depend on how many messages."""
