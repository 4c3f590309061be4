"""The pure core: definitions, facts, effects, and the actors that turn the first two into the third. No I/O."""
