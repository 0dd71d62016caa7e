"""An emulated Raspberry Pi, and proofs that bundles run on it; see docs/emulated-pi.md."""
