"""The contract between host and device. Standard library only: nothing here knows an engine."""
