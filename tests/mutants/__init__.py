"""Seeded protocol bugs: each rule taken out alone, and the part of the suite that finds it."""
