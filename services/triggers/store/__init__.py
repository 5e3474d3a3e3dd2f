"""All SQL of triggers. Every function works on a whole batch; the number of statements does not depend on its size."""
