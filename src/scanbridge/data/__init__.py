"""From files to tensors, and exactly back."""
