"""Networks: modules that know tensors only."""
