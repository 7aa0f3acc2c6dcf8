"""The process of one hospital: outbound connections only, installed code only."""
