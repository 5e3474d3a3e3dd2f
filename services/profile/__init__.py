"""The profile service: events → nodes, links, profiles (the CDP store) and the consent ledger."""
