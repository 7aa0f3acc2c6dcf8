"""Certificates and keys: who may take part."""
