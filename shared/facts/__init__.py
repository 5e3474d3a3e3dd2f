"""What is known of a person: a node's state, ⊕, the fold over rows, and the facts a decision may see. Pure."""
