"""The checks of gpu_check.py, and what runs them."""
