"""Modules of tools/compare_losses.py."""
