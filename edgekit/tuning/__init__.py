"""Thresholds: which there are to choose from, and what can be promised of one choice."""
