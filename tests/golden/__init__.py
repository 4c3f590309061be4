"""Golden histories: logs of the past, with what was decided on them. Whoever comes later must decide the same."""
