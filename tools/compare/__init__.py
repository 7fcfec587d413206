"""What tools/compare_losses.py is made of."""
