"""The read side of the CDP store for triggers and dispatch: the `cdp.*` views, and facts as of T with the same fold that
profile writes with.

Facts as of T are the rows with learned-at ≤ T under the membership of that moment. Every function takes a connection
inside the caller's transaction and works on batches: the number of statements does not depend on how many people.
"""
