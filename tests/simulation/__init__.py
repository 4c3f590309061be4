"""The deterministic simulation: production processes on a simulated clock, network and server. One seed, one run."""
