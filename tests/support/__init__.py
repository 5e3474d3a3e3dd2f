"""What the tests share: peers that are processes of their own, a database for each test, waiting with a limit."""
