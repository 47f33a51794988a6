"""Tables and arrays in, one self-contained page out."""
