"""What a hospital holds, turned into tensors."""
