"""Launching on other machines: builds commands for existing engines; imports configs only."""
