"""The transparency log: what the server did, where nobody can change it unseen."""
